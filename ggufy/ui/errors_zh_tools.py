"""What llama.cpp and quantizing can refuse, in Simplified Chinese; see errors_zh.py."""

from __future__ import annotations

TOOLS = """\
# ---- llama.cpp
llama.cpp has to be built once, and there is no C++ compiler: install one and run the same command again (Debian, \
Ubuntu: apt-get install build-essential; Fedora: dnf install gcc-c++; macOS: xcode-select --install).
    llama.cpp 需要编译一次，但没有 C++ 编译器：请安装后再试一次（Debian、Ubuntu：apt-get install build-essential；\
Fedora：dnf install gcc-c++；macOS：xcode-select --install）。
llama.cpp has to be built once, which needs cmake and ninja: run `pip install cmake ninja`.
    llama.cpp 需要编译一次，这要用到 cmake 和 ninja：请运行 `pip install cmake ninja`。
llama.cpp has to be fetched once, which needs pip: run `python -m ensurepip`.
    llama.cpp 需要下载一次，这要用到 pip：请运行 `python -m ensurepip`。
building llama.cpp needs {needed} in {folder}, and {free} are free: free some space and run the same command again.
    编译 llama.cpp 在 {folder} 中需要 {needed}，可用空间为 {free}：请释放空间后再试一次。
pip fetched another {package} than the pinned one: {advice}.
    pip 下载的 {package} 不是指定的那一个：{advice}。
check the network and pip's settings, and run the same command again
    请检查网络和 pip 的设置，然后再试一次
see the log for what is missing
    请查看日志，了解缺少什么
run the same command again to go on from there, with fewer threads if memory ran out
    请再试一次，会接着编译；如果内存不足，请减少线程数
fetching {package}
    下载 {package}
fetching {package} {version}
    正在下载 {package} {version}
configuring llama.cpp
    配置 llama.cpp
compiling llama.cpp
    编译 llama.cpp
waiting for another process that builds llama.cpp
    正在等待另一个进程编译 llama.cpp
waiting for another runner
    正在等待另一个运行进程
waiting for the Hub: {reason}
    正在等待 Hub：{reason}
the build calls itself {found} and not {expected}: remove {folder} and try again.
    编译结果自称 {found}，而不是 {expected}：请删除 {folder} 后再试一次。
{package} holds no usable {folder} ({reason}): run the same command again.
    {package} 中没有可用的 {folder}（{reason}）：请再试一次。
{name} in {package} is not the file that is to be changed: please report it.
    {package} 中的 {name} 不是要修改的那个文件：请反馈给我们。
{what} failed: {reason}; {advice} (log: {log}).
    {what} 失败：{reason}；{advice}（日志：{log}）。
the disk is full while {what} in {folder}: free some space and run the same command again.
    在 {folder} 中{what} 时磁盘已满：请释放空间后再试一次。
{path} --version names no commit: use a build of llama.cpp from git.
    {path} --version 没有给出提交：请使用从 git 编译的 llama.cpp。
GGUFY_LLAMA_DIR is {folder}, which has no {tool}: {advice}.
    GGUFY_LLAMA_DIR 是 {folder}，其中没有 {tool}：{advice}。
build it as llama.cpp's docs/build.md says, or unset GGUFY_LLAMA_DIR to let ggufy build its own
    请按 llama.cpp 的 docs/build.md 编译，或取消 GGUFY_LLAMA_DIR，由 ggufy 自行编译
llama-quantize in {folder} does not know {types}: use a newer llama.cpp.
    {folder} 中的 llama-quantize 不认识 {types}：请使用更新的 llama.cpp。
{program} does not start on this machine ({reason}): build llama.cpp on it again.
    {program} 无法在本机启动（{reason}）：请在本机重新编译 llama.cpp。
signal {number}
    信号 {number}
{program} {option} did not end within a minute: build it again.
    {program} {option} 在一分钟内没有结束：请重新编译。
{folder} has no {tool}: build that target too, or unset GGUFY_LLAMA_DIR.
    {folder} 中没有 {tool}：请也编译该目标，或取消 GGUFY_LLAMA_DIR。
{name} cannot be started ({reason}): free some disk and memory, and try again.
    无法启动 {name}（{reason}）：请释放一些磁盘和内存后再试。
{tool} failed ({code}): {reason}
    {tool} 失败（{code}）：{reason}
exit code {code}
    退出码 {code}
ended by {signal}
    被 {signal} 终止
ended by {signal}, probably out of memory
    被 {signal} 终止，可能是内存不足
it printed nothing
    没有任何输出
{tool} ended {count} times without its figures: run the same command again.
    {tool} 结束了 {count} 次，都没有给出数值：请点“重试”。
llama-quantize --dry-run listed {found} of {total} tensors: {reason}
    llama-quantize --dry-run 只列出了 {total} 个张量中的 {found} 个：{reason}
llama-imatrix did not say how many chunks it reads: {reason}
    llama-imatrix 没有说明读取多少块文本：{reason}
llama-completion cannot continue the text: {reason}
    llama-completion 无法续写文本：{reason}
llama-cli cannot load {name}: {reason}
    llama-cli 无法加载 {name}：{reason}
llama-cli had ended: send the message again.
    llama-cli 已经结束：请重新发送消息。
llama-cli ended ({reason}): send the message again.
    llama-cli 已结束（{reason}）：请重新发送消息。
the model gave no reply: {reason}; clear the conversation, or write less.
    模型没有回复：{reason}；请清空对话，或写得短一些。

# ---- quantizing
{folder} has no {library}, as a static build of llama.cpp: build it with -DBUILD_SHARED_LIBS=ON, or unset \
GGUFY_LLAMA_DIR.
    {folder} 中没有 {library}（llama.cpp 可能是静态编译的）：请用 -DBUILD_SHARED_LIBS=ON 编译，或取消\
 GGUFY_LLAMA_DIR。
{path} cannot be used ({reason}): build llama.cpp again, or unset GGUFY_LLAMA_DIR.
    无法使用 {path}（{reason}）：请重新编译 llama.cpp，或取消 GGUFY_LLAMA_DIR。
{base}: {tensor} has values that are not finite: fetch or convert the model again.
    {base} 中的 {tensor} 含有非有限的值：请重新下载或转换模型。
{base}: {tensor} has values that {type} cannot hold: choose another type.
    {base} 中的 {tensor} 含有 {type} 无法容纳的值：请选择其他类型。
{path} became shorter while it was read: run the same command again.
    {path} 在读取时变短了：请点“重试”。
{name} is no imatrix of llama-imatrix: make one, or leave --imatrix out.
    {name} 不是 llama-imatrix 生成的 imatrix：请制作一个，或改选其他“重要性矩阵（imatrix）”选项。
{name} has {count} counts for {tensor}: make a new imatrix.
    {name} 中 {tensor} 有 {count} 个计数，数目不对：请重新制作 imatrix。
{name} has impossible values for {tensor}: make a new imatrix.
    {name} 中 {tensor} 的值不可能存在：请重新制作 imatrix。
{name} has only half of the data for {tensor}: make a new imatrix.
    {name} 中 {tensor} 的数据只有一半：请重新制作 imatrix。
{base} is one part of a split model: merge the parts with llama-gguf-split first.
    {base} 只是模型的一个分片：请先用 llama-gguf-split 合并。
the recipe names the tensor {tensor}, which {base} has not: correct the recipe.
    配方中的张量 {tensor} 不在 {base} 中：请修正配方。
{base} is quantized already ({tensor} is {type}): take the F16, BF16 or F32 file instead.
    {base} 已经是量化文件（{tensor} 的类型是 {type}）：请改用 F16、BF16 或 F32 文件。
the recipe wants {type} for {tensor}: known types are {types}.
    配方要求 {tensor} 使用 {type}，而可用的类型只有 {types}：请修正配方。
{tensor} is {width} wide and cannot become {type}, which needs a multiple of {block}: choose another type for it.
    {tensor} 的宽度是 {width}，而 {type} 需要 {block} 的倍数：请为它选择其他类型。
{tensor} needs an imatrix to become {type}, and there is none: make an imatrix of this model, or choose another type.
    {tensor} 量化为 {type} 需要 imatrix，但没有：请为此模型制作 imatrix，或选择其他类型。
{tensor} needs an imatrix to become {type}, and {file} has no data for it: make an imatrix of this model, or choose \
another type.
    {tensor} 量化为 {type} 需要 imatrix，而 {file} 中没有它的数据：请为此模型制作 imatrix，或选择其他类型。
the imatrix has {found} values for {tensor}, which has {expected} columns: make one of this model.
    imatrix 中 {tensor} 有 {found} 个值，而它有 {expected} 列：请为此模型制作 imatrix。
"""
