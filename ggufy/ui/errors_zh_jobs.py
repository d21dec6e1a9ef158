"""What can go wrong with the form, a job, its texts or a chat, in Simplified Chinese; see errors_zh.py."""

from __future__ import annotations

JOBS = """\
# ---- the form and the job
unexpected error, please report it: {kind}: {error}
    发生了意外错误，请反馈给我们：{kind}：{error}
no source given: enter demo, a path, or owner/repo:file.pth.
    没有填写来源：请输入 demo、路径或 owner/repo:file.pth。
on a Space the source is demo or owner/repo:file.pth, and no file of this machine.
    在 Space 上，来源只能是 demo 或 owner/repo:file.pth，不能是本机文件：请重新填写。
on a Space a text is {texts}, and no file of this machine: leave other texts, imatrix files and vocabularies out.
    在 Space 上，文本只能是 {texts}，不能是本机文件：请去掉其他文本、imatrix 文件和词表。
on a Space one job makes at most {most} sizes: order fewer.
    在 Space 上，一个任务最多做 {most} 种大小：请少选一些。
{count} jobs of visitors wait on this Space already: try again later.
    这个 Space 上已有 {count} 个访客的任务在等待：请稍后再试。
on {address} the page is open to every machine that reaches it: set GGUFY_PASSWORD, or GGUFY_TRUSTED_NETWORK=1.
    监听 {address} 时，任何能访问此页面的机器都能使用它：请设置 GGUFY_PASSWORD，或 GGUFY_TRUSTED_NETWORK=1。
{name} must be text: put it between quotes.
    {name} 必须是文本：请加上引号。
{name} has {count} characters: use at most {most}.
    {name} 有 {count} 个字符：最多只能有 {most} 个。
{name} must be true or false.
    {name} 只能是 true 或 false。
the form came back damaged: reload the page.
    表单数据有误：请刷新页面。
no quant type chosen: check at least one.
    没有选择量化类型：请至少勾选一种。
no quant type given: use --types all, recommended, or names such as Q4_K_M,Q6_K.
    没有给出量化类型：请填写 all、recommended，或 Q4_K_M,Q6_K 这样的名称。
unknown quant type {word}: {hint}
    未知的量化类型 {word}：{hint}
did you mean {names}?
    是不是 {names}？
known types: {names}.
    可用的类型有 {names}。
no text or imatrix given: fill in “Calibration text or imatrix file”, or choose another way.
    没有给出文本或 imatrix：请填写“校准文本或 imatrix 文件”，或改选其他方式。
no name can be made from {text}: give one with --name.
    无法从 {text} 得出名称：请填写“名称”。
--repo names a repo on the Hub: add --hub hf, or leave it out.
    “输出仓库”是 Hub 上的仓库，而这里的结果只存到本机：请清空它，或以 --hub hf 启动 ggufy。
{repo} is no name for a repo: give one such as {example} with --repo.
    {repo} 不能用作仓库名：请在“输出仓库”中填写 {example} 这样的名称。
unknown mix {mix}: one of {mixes}.
    未知的混合方案 {mix}：请选择 {mixes} 之一。
unknown outtype {type}: one of {types}.
    未知的基础类型 {type}：请选择 {types} 之一。
unknown outtype {type}: choose one of {types}.
    未知的基础类型 {type}：请选择 {types} 之一。
this GGUF is {own} and is taken as it is: leave --outtype {type} out.
    这个 GGUF 的类型是 {own}，将原样使用：请不要把“基础类型”设为 {type}。
a GGUF carries its vocabulary: leave --vocab out.
    GGUF 已带有词表：请清空“自带词表”。
{types} cannot be made without an imatrix: leave out --imatrix none, or them.
    没有 imatrix 就无法制作 {types}：请改用其他“重要性矩阵（imatrix）”选项，或取消这些类型。
only its owner may start, stop or change jobs on this Space: {way}, or run ggufy on your own machine.
    只有此 Space 的所有者可以启动、停止或更改任务：请{way}，或在自己的机器上运行 ggufy。
only its owner may chat on this Space: {way}, or run ggufy on your own machine.
    只有此 Space 的所有者可以在此对话：请{way}，或在自己的机器上运行 ggufy。
sign in as the owner, or duplicate the Space
    以所有者身份登录，或复制此 Space
duplicate the Space
    复制此 Space
this job is not there any more: reload the page.
    这个任务已不存在：请刷新页面。
{job} goes to {repo}: run it with --hub hf and HF_TOKEN.
    {job} 要发布到 {repo}：请设置 HF_TOKEN 并以 --hub hf 启动 ggufy。
publishing to the Hub needs a token that may write: set HF_TOKEN, or leave --hub hf out.
    发布到 Hub 需要可写的令牌：请设置 HF_TOKEN，或去掉 --hub hf。
{folder} already holds files that were made from something else or with other options: give this run another --name \
or --out, or move that folder away.
    {folder} 中已有用其他来源或选项制作的文件：请换一个“名称”，或移走该文件夹。
{repo} already has a README.md that ggufy did not write: choose another --repo, or add --keep-card to \
publish files only.
    {repo} 中已有不是由 ggufy 写的 README.md：请换一个“输出仓库”，或勾选“保留仓库自己的说明”以只发布文件。
{repo} holds the files of another model, {name}: give this run another --repo.
    {repo} 中是另一个模型 {name} 的文件：请换一个“输出仓库”。
{repo} already holds {file}, made from something else or with other options: give this run another --repo or --name.
    {repo} 中已有用其他来源或选项制作的 {file}：请换一个“输出仓库”或“名称”。
another run is working in {folder}: wait for it, or give this one another --name or --out.
    另一个任务正在使用 {folder}：请等它结束，或换一个“名称”。
another run holds {path}: wait for it to end.
    另一个任务占用着 {path}：请等它结束。
another evaluation runs in {folder}: wait for it to end, or give another --out.
    另一次测量正在使用 {folder}：请等它结束后再试。
stopped while waiting.
    在等待时停止。
stopped while waiting for the Hub or for another runner.
    在等待 Hub 或另一个运行进程时停止。
stopped while unfinished work was being saved.
    在保存未完成的工作时停止。
the job was stopped.
    任务已停止。
stopped while files were being uploaded.
    在上传文件时停止。
stopped while llama.cpp was being made ready.
    在准备 llama.cpp 时停止。
stopped while the model was being fetched.
    在取回模型时停止。

# ---- disk
the disk is full while writing {name} ({free} free): free some space and run the same command again; what is \
finished stays.
    写入 {name} 时磁盘已满（可用 {free}）：请释放空间后点“重试”；已完成的部分会保留。
no permission to write {path}: choose another folder with {setting}.
    没有写入 {path} 的权限：请用 {setting} 换一个文件夹。
{needed} are needed in {folder} and {free} are free: free some space and run the same command again; what is \
finished stays.
    {folder} 中需要 {needed}，可用空间为 {free}：请释放空间后点“重试”；已完成的部分会保留。
{needed} are needed in {folder} and {free} are free, {missing} too little: choose fewer --types or another --out.
    {folder} 中需要 {needed}，可用空间为 {free}，还差 {missing}：请减少量化类型，或用 GGUFY_OUT 换一个文件夹。
the model needs {needed} in {folder} and {free} are free: choose a smaller quant, or free some space.
    模型在 {folder} 中需要 {needed}，可用空间为 {free}：请选择更小的量化文件，或释放空间。
the disk is full while {name} is measured: free some space and run the same command again; what is finished stays.
    测量 {name} 时磁盘已满：请释放空间后点“重试”；已完成的部分会保留。
the base's predictions need {needed} in {folder} and {room} are free: free some space or give another --out.
    基础模型的预测在 {folder} 中需要 {needed}，可用空间为 {room}：请释放空间，或用 GGUFY_OUT 换一个文件夹。
the base's predictions need {needed} in {folder} and {room} are allowed: free some space or give another --out.
    基础模型的预测在 {folder} 中需要 {needed}，而上限为 {room}：请释放空间，或用 GGUFY_OUT 换一个文件夹。
the base's predictions over {chunks} chunks need {needed} in {folder} and {room} are free: free some space and run \
the same command again.
    基础模型对 {chunks} 块文本的预测在 {folder} 中需要 {needed}，可用空间为 {room}：请释放空间后重试。

# ---- calibration, imatrix, measuring
the imatrix {path} does not exist: give a file, auto or none.
    imatrix 文件 {path} 不存在：请填写现有文件，或改选其他“重要性矩阵（imatrix）”选项。
{name} is no imatrix in GGUF form: make it again with a llama-imatrix of 2025 or later.
    {name} 不是 GGUF 格式的 imatrix：请用 2025 年或更新的 llama-imatrix 重新制作。
{name} is a GGUF file but no imatrix: give the output of llama-imatrix.
    {name} 是 GGUF 文件，但不是 imatrix：请提供 llama-imatrix 的输出文件。
{name} has no data for {tensor}: it was made from another model.
    {name} 中没有 {tensor} 的数据：它由另一个模型制作，请换用与此模型相符的 imatrix。
{name} has {found} columns for {tensor}, the model has {expected}: it was made from another model.
    {name} 中 {tensor} 有 {found} 列，模型有 {expected} 列：它由另一个模型制作，请换用与此模型相符的 imatrix。
{name} saw no token for {tensor}: use a longer calibration text.
    {name} 中没有经过 {tensor} 的词元：请使用更长的校准文本。
{name} holds a value for {tensor} that is not finite: make it again.
    {name} 中 {tensor} 含有非有限的值：请重新制作。
there is no calibration text {choice}: give {names}, a file, an http address, or a dataset on the Hub as \
owner/name:file.txt.
    没有校准文本 {choice}：请填写 {names}、文件、网址，或 Hub 上的数据集 owner/name:file.txt。
the calibration text {name} is too short ({size}): at least 1,024 tokens are needed, 10 to 20 thousand (about 50 to \
100 kB) are good.
    校准文本 {name} 太短（{size}）：至少需要 1,024 个词元，最好有 1 万到 2 万个（约 50 到 100 kB）。
the calibration text {name} is not UTF-8 (byte {byte}): save it as UTF-8 text.
    校准文本 {name} 不是 UTF-8（第 {byte} 字节）：请另存为 UTF-8 文本。
{name} holds zero bytes, so it is not a text: give a text file.
    {name} 含有零字节，不是文本：请提供文本文件。
{path} has {size}, more than {most}: give a shorter text.
    {path} 有 {size}，超过 {most}：请换一份较短的文本。
the calibration text {name} has {found} tokens, at least {needed} are needed: give a longer one with --calibration \
(10 to 20 thousand tokens are good).
    校准文本 {name} 有 {found} 个词元，至少需要 {needed} 个：请换一份更长的文本（最好有 1 万到 2 万个词元）。
the calibration text that this job was made with is gone from the cache: run the same quantize command again, which \
fetches it.
    此任务所用的校准文本已不在缓存中：请在表单中重新开始，会再次获取它。
the evaluation text that this job was made with is gone from the cache: run the same quantize command again, which \
fetches it.
    此任务所用的测量文本已不在缓存中：请在表单中重新开始，会再次获取它。
{evaluation} and the calibration text {calibration} share {share}, so the figures would flatter the quants: give \
another --text.
    {evaluation} 与校准文本 {calibration} 有 {share} 相同，测得的结果会偏乐观：请换一份“测量文本”。
this Python carries {found} of text to evaluate on, {needed} are needed: use one with the sources of its standard \
library.
    此 Python 自带的可测量文本只有 {found}，需要 {needed}：请使用带标准库源码的 Python。
the figures need at least one chunk of text: give a larger number of evaluation chunks.
    测量至少需要一块文本：请增大测量的块数。
there is no evaluation text {path}: check the path of --text.
    没有测量文本 {path}：请检查“测量文本”中的路径。
the evaluation text {path} is not UTF-8 (byte {byte}): save it as UTF-8 text.
    测量文本 {path} 不是 UTF-8（第 {byte} 字节）：请另存为 UTF-8 文本。
the evaluation text {name} has {found} tokens, at least {needed} are needed: give a longer one with --text.
    测量文本 {name} 有 {found} 个词元，至少需要 {needed} 个：请换一份更长的“测量文本”。
{quant} predicts values that are not finite: it is broken, quantize it again.
    {quant} 的预测含有非有限的值，文件已损坏：请重新量化。

# ---- chat
there is no setting {name}: use {names}.
    没有设置项 {name}：可用的有 {names}。
the mode is one of {modes}.
    模式只能是 {modes} 之一：请重新选择。
the system prompt must be text.
    系统提示必须是文本：请重新填写。
the system prompt has {count} characters: use at most {most}.
    系统提示有 {count} 个字符：请缩短到 {most} 个以内。
{name} must be a whole number from {low} to {high}.
    {name} 必须是 {low} 到 {high} 的整数：请修改。
{name} must be a number from {low} to {high}.
    {name} 必须是 {low} 到 {high} 的数：请修改。
this model is not among the finished quants: choose one of the list.
    这个模型不在已完成的量化文件中：请从列表中选择。
the side is one of {sides}.
    side 只能是 {sides} 之一：请刷新页面。
the message must be text.
    消息必须是文本：请重新输入。
the message has {count} characters: use at most {most}.
    消息有 {count} 个字符：请缩短到 {most} 个以内。
the message is empty: write something first.
    消息为空：请先写点什么。
there is no message to reply to again: write one first.
    没有可以重新回复的消息：请先发送一条。
{name} is gone: choose another model.
    {name} 已不存在：请选择其他模型。
the reply before this one is still being made: wait for it, or stop it.
    上一条回复还在生成：请等它完成，或停止它。
the model is still replying: wait for it, or stop it.
    模型还在回复：请等它完成，或停止它。
{count} replies are being made, and no more fit: try again in a moment.
    正在生成 {count} 条回复，已无余力：请稍后再试。
ggufy is being stopped: try again when it runs.
    ggufy 正在停止：请等它运行后再试。
{name} needs about {needed} of memory, and {free} are free: choose a smaller quant, or try again when less is \
running.
    {name} 约需 {needed} 内存，可用 {free}：请选择更小的量化文件，或等空闲一些再试。
the model was put away: send the message again.
    模型已被卸下：请重新发送消息。
llama.cpp is not ready yet: wait until the page says that it is.
    llama.cpp 尚未就绪：请等页面提示就绪。
# ---- paths, and what the environment says
the proxy in {variable} ({kind}://…) cannot be used: {advice} or unset it.
    {variable} 中的代理（{kind}://…）无法使用：请{advice}，或取消该变量。
write socks5://…
    改写为 socks5://…
write it as http://host:port
    写成 http://host:port
run `make setup` again
    重新运行 `make setup`
{text} is no path: give that of a file or a folder.
    {text} 不是路径：请填写文件或文件夹的路径。
the name {text} is not UTF-8: rename that file or folder.
    名称 {text} 不是 UTF-8：请重命名该文件或文件夹。
there is no home folder for {text}: write the path in full.
    {text} 没有对应的主目录：请填写完整路径。
{path} cannot be written ({reason}): choose another folder with {setting}.
    {path} 无法写入（{reason}）：请用 {setting} 选择其他文件夹。
--out
    GGUFY_OUT
{path} is no folder: choose one with {setting}.
    {path} 不是文件夹：请用 {setting} 选择一个。
{path} is gone: put it back and run the same command again.
    {path} 已不存在：请放回原处，然后再次运行同一命令。
# ---- sizes to order
{size} is no less than the unquantized file, which has {base}: take that, it is made with every job, or order a \
smaller size.
    {size} 不小于未量化的文件（{base}）：请直接使用该文件（每个任务都会制作），或订制更小的大小。
another run works on {name}: wait for it to end.
    另一个任务正在处理 {name}：请等它完成。
--like {type} is no quant type: known types are {types}.
    {type} 不是量化类型：可用的类型有 {types}。
give one size: {options}, or --like with a quant type.
    请只给出一种大小：{options}，或用 --like 指定量化类型。
--chunks must be at least 2.
    --chunks 至少为 2。
{asked} ({bytes} bytes) is too small for these tensors, which take at least {least} ({count} bytes): ask for more, or \
allow smaller types.
    {asked}（{bytes} 字节）容不下这些张量，它们至少需要 {least}（{count} 字节）：请给大一些，或允许更小的类型。
{option} {text} is no number: write bits per weight, such as 3.275.
    {option} {text} 不是数字：请填写每个权重的位数，例如 3.275。
{option} {text} is out of range: give bits per weight from 1.6 to {most}.
    {option} {text} 超出范围：请填写 1.6 到 {most} 之间的每权重位数。
{option} {text} is no size: write a number and a unit, such as 1.2GB or 900MiB.
    {option} {text} 不是大小：请填写数字和单位，例如 1.2GB 或 900MiB。
{option} {text} is out of range: write a size such as 1.2GB or 900MiB.
    {option} {text} 超出范围：请填写 1.2GB 或 900MiB 这样的大小。
{option} {asked} leaves no room for any weights (the rest takes {rest}): ask for more.
    {option} {asked} 放不下任何权重（其余部分需要 {rest}）：请给大一些。
{options} exclude each other: give one of them.
    {options} 不能同时使用：请只给出一个。
unknown mode {mode}: one of {modes}.
    未知的测量方式 {mode}：可选 {modes}。
{target} is too small for this model, which needs more than {size}: ask for more.
    {target} 对此模型太小，至少需要超过 {size}：请给大一些。
{target} is too small for this model, whose smallest mix takes {size}: ask for more.
    {target} 对此模型太小，最小的混合文件需要 {size}：请给大一些。
{path} is there already, and is no mix: remove it, or give another --out.
    {path} 已存在，而且不是混合文件：请删除它，或用 --out 指定别处。
{word} is no size to order: write one such as 1.2GB, 900MiB, 3.275bpw or mem4GB.
    {word} 不是可定制的大小：请填写 1.2GB、900MiB、3.275bpw 或 mem4GB 这样的值。
{word} is no size to order: it is too small, too large, or has another unit.
    {word} 不是可定制的大小：太小、太大，或单位不对。
{label} is no label of a size to order: write it as 1.2GB-IQ3_XXS_FIT.
    {label} 不是定制大小的标签：请写成 1.2GB-IQ3_XXS_FIT。
this size is not on the list any more: reload the page.
    这个大小已不在列表中：请刷新页面。
"""
