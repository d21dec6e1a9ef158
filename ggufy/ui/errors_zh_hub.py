"""What the Hub, its repos and the lease on them can refuse, in Simplified Chinese; see errors_zh.py."""

from __future__ import annotations

HUB = """\
# ---- sources on the Hub
{text} is no name on the Hub: write owner/repo or owner/repo:file.
    {text} 不是 Hub 上的名称：请写成 owner/repo 或 owner/repo:file。
{text} is not the address of a model on the Hub: write owner/repo:file.pth.
    {text} 不是 Hub 上模型的网址：请写成 owner/repo:file.pth。
{text} is a page of {repo}, not a file: write {example}.
    {text} 是 {repo} 的页面，不是文件：请写成 {example}。
{name} in {repo} is a small text file, not a model: choose another.
    {repo} 中的 {name} 是很小的文本文件，不是模型：请选择其他文件。
{name} in {repo} is no {suffix} file: choose {files}.
    {repo} 中的 {name} 不是 {suffix} 文件：请选择 {files}。
{name} in {repo} is no {suffix} file: choose another repo.
    {repo} 中的 {name} 不是 {suffix} 文件：请选择其他仓库。
{repo} has no file {name}: it holds {files}.
    {repo} 中没有文件 {name}，只有 {files}：请检查文件名。
{repo} has no file {name}: it holds nothing like it.
    {repo} 中没有文件 {name}，也没有名称相近的：请检查文件名。
{repo} holds no {suffix} file: look at {page} and choose a repo that does.
    {repo} 中没有 {suffix} 文件：请查看 {page}，选择有这种文件的仓库。
{repo} holds {count} {suffix} files, choose one, for example {example}; there are {files}.
    {repo} 中有 {count} 个 {suffix} 文件：请选择一个，例如 {example}；共有 {files}。
{repo} holds {count} .pth files: choose one, for example {example}.
    {repo} 中有 {count} 个 .pth 文件：请选择一个，例如 {example}。
{repo} holds no .pth file, only GGUF: name an unquantized one, for example {example}.
    {repo} 中没有 .pth 文件，只有 GGUF：请指定一个未量化的，例如 {example}。
the Hub did not answer in time: try again later.
    Hub 没有及时响应：请稍后再试。
the Hub allows no such name ({reason}): write owner/repo or owner/repo:file.
    Hub 不允许这样的名称（{reason}）：请写成 owner/repo 或 owner/repo:file。
{repo} is gated: accept its conditions on {page} and use the token of that account.
    {repo} 需申请访问：请在 {page} 接受条款，并使用该账号的令牌。
{repo} is gated: accept its conditions on {page} and set HF_TOKEN to a token of that account.
    {repo} 需申请访问：请在 {page} 接受条款，并把 HF_TOKEN 设为该账号的令牌。
the Hub has no {kind} {repo}, or it is private: check the name, a private one needs a token that may read it.
    Hub 上没有 {repo}（{kind}），或它是私有的：请检查名称；读取私有仓库需要有权限的令牌。
the Hub has no {kind} {repo}, or it is private: check the name, for a private one set HF_TOKEN.
    Hub 上没有 {repo}（{kind}），或它是私有的：请检查名称；读取私有仓库请设置 HF_TOKEN。
{repo} has no revision {revision}: look at {page}.
    {repo} 没有版本 {revision}：请查看 {page}。
{repo} has no file {name} at this revision: look at {page}.
    {repo} 的这个版本中没有文件 {name}：请查看 {page}。
the Hub refuses to show {repo} with the token given: check HF_TOKEN.
    Hub 拒绝用当前令牌显示 {repo}：请检查 HF_TOKEN。
{host} answers with HTTP status {status}: run the same command again later, it continues.
    {host} 返回 HTTP 状态 {status}：请稍后重试，会接着进行。
{host} answers with HTTP status {status}: check the name.
    {host} 返回 HTTP 状态 {status}：请检查名称。
{host} cannot be reached ({reason}): check the network and run the same command again, it continues.
    无法连接 {host}（{reason}）：请检查网络后重试，会接着进行。
the Hub
    Hub

# ---- searching the Hub
the search is busy: try again in a moment, or type the name as owner/repo.
    搜索繁忙：请稍后再试，或直接输入 owner/repo。
the Hub does not know the token: set HF_TOKEN to a valid one, or leave it out.
    Hub 不认识该令牌：请把 HF_TOKEN 设为有效的令牌，或不设置。
the Hub is busy (HTTP status {status}): {advice}
    Hub 繁忙（HTTP 状态 {status}）：{advice}
the Hub refuses to search (HTTP status {status}): {advice}
    Hub 拒绝搜索（HTTP 状态 {status}）：{advice}
type the name as owner/repo, or try again later.
    请直接输入 owner/repo，或稍后再试。
the Hub's answer cannot be understood: {advice}
    无法理解 Hub 的回答：{advice}
the Hub cannot be searched ({reason}): {advice}
    无法搜索 Hub（{reason}）：{advice}

# ---- repos that are written to
{path} is no name for a file in a repo: use plain names without leading dots.
    {path} 不能用作仓库中的文件名：请使用不以点开头的普通名称。
{repo} has no file {path} on the Hub: it has to be made again.
    Hub 上的 {repo} 中没有文件 {path}：需要重新制作。
{path} is gone, so it cannot be uploaded: make it again.
    {path} 已不存在，无法上传：请重新制作。
{file} is not in {repo} as it was sent: run the same command again.
    {repo} 中的 {file} 与发送的不同：请点“重试”。
{repo} is on the Hub already and is public, but should be private: change that in its settings there, or choose \
another name.
    Hub 上已有公开的 {repo}，而它应为私有：请在 Hub 上更改它的设置，或换一个名称。
somebody else has committed to {repo} meanwhile: read it again.
    其间有他人向 {repo} 提交了内容：请重新读取。
{repo} has no commit {commit} any more: read it again.
    {repo} 中已没有提交 {commit}：请重新读取。
{repo} holds nothing on the Hub: delete it there, it is made again.
    Hub 上的 {repo} 是空的：请在 Hub 上删除它，它会重新创建。
{repo} is gone: it is made again, and what this runner knows is saved in it.
    {repo} 已不存在：会重新创建，并把本进程所知的内容存入其中。
{limit} commits an hour are enough: the next one may be made in {wait} s.
    每小时最多提交 {limit} 次：{wait} 秒后可以进行下一次。
no token was given: set HF_TOKEN to one that may write.
    没有令牌：请把 HF_TOKEN 设为可写的令牌。

# ---- what the Hub answers
the Hub cannot say whose token this is ({kind}): try again later.
    Hub 现在无法确认这个令牌属于谁（{kind}）：请稍后再试。
your account
    你的账号
the Hub's client refuses {repo} ({reason}): please report it.
    Hub 的客户端拒绝 {repo}（{reason}）：请反馈给我们。
the Hub allows no such name ({reason}): choose another --repo or --name.
    Hub 不允许这样的名称（{reason}）：请换一个“输出仓库”或“名称”。
HF_HUB_OFFLINE keeps the Hub from being asked: unset it and start again.
    设置了 HF_HUB_OFFLINE，无法访问 Hub：请取消该设置后重新启动 ggufy。
the Hub cannot be reached: it is tried again later, nothing is lost.
    无法连接 Hub：稍后会再试，不会丢失任何内容。
the connection was closed
    连接已关闭
HF_ENDPOINT is {address}, which is no address: write https:// in front of it.
    HF_ENDPOINT 是 {address}，不是网址：请在前面加上 https://。
the token holds a character that no token has: paste it again.
    令牌中含有不该有的字符：请重新粘贴。
the question to the Hub cannot be sent ({reason}): please report it.
    无法向 Hub 发送请求（{reason}）：请反馈给我们。
the proxy in the environment cannot be used ({reason}): unset it.
    环境变量中的代理无法使用（{reason}）：请取消该变量。
the Hub's address cannot be used ({reason}): check HF_ENDPOINT.
    Hub 的地址无法使用（{reason}）：请检查 HF_ENDPOINT。
the Hub cannot be reached ({reason}): it is tried again later, nothing is lost.
    无法连接 Hub（{reason}）：稍后会再试，不会丢失任何内容。
the Hub's answer about {repo} arrived damaged: it is tried again later, nothing is lost.
    Hub 关于 {repo} 的回答已损坏：稍后会再试，不会丢失任何内容。
the Hub answers with HTTP status {status}: it is tried again later, nothing is lost.
    Hub 返回 HTTP 状态 {status}：稍后会再试，不会丢失任何内容。
the upload broke off ({reason}): it is tried again later, nothing is lost.
    上传中断（{reason}）：稍后会再试，不会丢失任何内容。
nothing moved for {seconds} s
    {seconds} 秒内没有进展
the Hub takes no more requests for now{said}: it is asked again in {wait} s.
    Hub 暂时不再接受请求{said}：{wait} 秒后会再试。
the Hub has no room for {repo}{said}: make room at https://huggingface.co/settings/billing or choose another owner \
with --repo, then retry the job.
    Hub 上没有存放 {repo} 的空间{said}：请在 https://huggingface.co/settings/billing 增加空间，或在“输出仓库”中换\
一个账号，然后重试任务。
the Hub does not know the token, or none was given{said}: set HF_TOKEN to a valid one.
    Hub 不认识该令牌，或没有令牌{said}：请把 HF_TOKEN 设为有效的令牌。
the token may not write to {repo}{said}: set HF_TOKEN to one with write access to that account.
    令牌无权写入 {repo}{said}：请把 HF_TOKEN 设为对该账号有写权限的令牌。
the Hub has no {kind} repo {repo}, or hides it from this token: check both.
    Hub 上没有仓库 {repo}（{kind}），或此令牌看不到它：请检查名称和令牌。
the Hub refuses what was asked of {repo} with HTTP status {status}{said}: please report it.
    Hub 拒绝了对 {repo} 的请求，HTTP 状态 {status}{said}：请反馈给我们。

# ---- one runner at a time
this runner does not hold the lease.
    此进程没有持有租约：请等另一个进程结束。
the lease could not be renewed for {seconds} s and may be another's by now: the work goes on when the Hub can be \
reached again.
    租约已有 {seconds} 秒未能续期，可能已归另一个进程所有：重新连上 Hub 后工作会继续。
the Hub has not said yet whose token this is: wait until it answers, and start again.
    Hub 尚未说明令牌属于谁：请等它恢复后再开始。
the Hub was asked, and has not answered yet.
    已向 Hub 发出请求，正在等待答复。
another runner is at work on {repo}: this one waits for it.
    另一个运行进程正在使用 {repo}：本进程正在等待它结束。
the job's record goes to the Hub first.
    任务记录会先写入 Hub。
it waits until {time}: only so many commits an hour are made (GGUFY_COMMITS).
    将等到 {time}：每小时只做有限次提交（GGUFY_COMMITS）。
another runner has had the lease since {since}: this one stops, the other goes on.
    另一个进程自 {since} 起持有租约：此进程停止，由另一个继续。
{repo} is being changed by somebody all the time: it is tried again later.
    {repo} 一直有人在更改：稍后会再试。
"""
