"""What can be wrong with a source, a vocabulary or a GGUF, in Simplified Chinese; see errors_zh.py."""

from __future__ import annotations

SOURCES = """\
# ---- checkpoints
{name} is empty: {advice}.
    {name} 是空文件：{advice}。
download or copy it again
    请重新下载或复制
{name} is in the format that PyTorch had before version 1.6: if you trust it, load it and save it again with \
torch.save.
    {name} 是 PyTorch 1.6 之前的格式：如果信任它，请加载后用 torch.save 重新保存。
{name} is not a PyTorch checkpoint: give a .pth file saved with torch.save.
    {name} 不是 PyTorch 检查点：请提供用 torch.save 保存的 .pth 文件。
{name} is a zip archive but not a PyTorch checkpoint: give a .pth file saved with torch.save.
    {name} 是 zip 压缩包，但不是 PyTorch 检查点：请提供用 torch.save 保存的 .pth 文件。
{name} is cut short or damaged: {advice}.
    {name} 不完整或已损坏：{advice}。
{name} is damaged (its record {record} is missing or of another size): {advice}.
    {name} 已损坏（其中的记录 {record} 缺失或大小不符）：{advice}。
{name} is damaged (its record {record} overlaps the next): {advice}.
    {name} 已损坏（其中的记录 {record} 与下一条重叠）：{advice}。
{name} has a damaged list of tensors: {advice}.
    {name} 的张量列表已损坏：{advice}。
{name} lists more tensors than any RWKV has: choose an RWKV-6 or RWKV-7 .pth.
    {name} 列出的张量比任何 RWKV 都多：请选择 RWKV-6 或 RWKV-7 的 .pth 文件。
{name} was compressed, so its weights cannot be mapped: save it with torch.save.
    {name} 经过压缩，无法映射其中的权重：请用 torch.save 重新保存。
{name} cannot be read as a PyTorch checkpoint ({reason}): {advice}.
    {name} 无法作为 PyTorch 检查点读取（{reason}）：{advice}。
{name} was refused: it holds {what}, which may run code when loaded, and nothing of it was run; use a .pth that \
holds tensors only.
    已拒绝 {name}：它含有 {what}，加载时可能执行代码（其中的代码未被执行）；请使用只含张量的 .pth 文件。
the operation {name}
    操作 {name}
a {kind} as a name
    以 {kind} 作为名称的条目
{name} was saved with pickle protocol {protocol}: if you trust it, load it and save it again with torch.save as it \
comes.
    {name} 是用 pickle 协议 {protocol} 保存的：如果信任它，请加载后用 torch.save 的默认设置重新保存。
{name} holds a {kind}, not a dict of tensors: save the model's state_dict() with torch.save.
    {name} 里是 {kind}，而不是由张量组成的字典：请用 torch.save 保存模型的 state_dict()。
{name} holds no tensors: save the model's state_dict() with torch.save.
    {name} 里没有张量：请用 torch.save 保存模型的 state_dict()。
{name} holds a {kind} under {key}, where only tensors belong: save the model's state_dict() alone with torch.save.
    {name} 的 {key} 处是 {kind}，而那里只应有张量：请用 torch.save 只保存模型的 state_dict()。
{key} in {name} is {kind}, not a tensor of floating-point weights: save the checkpoint again in bf16, f16 or f32.
    {name} 中的 {key} 是 {kind}，不是浮点权重张量：请以 bf16、f16 或 f32 重新保存检查点。
{path} does not exist: give the path of a .pth file.
    {path} 不存在：请填写 .pth 文件的路径。
{path} is a folder: give the path of a .pth file.
    {path} 是文件夹：请填写 .pth 文件的路径。
{path} cannot be read ({reason}): check its permissions.
    无法读取 {path}（{reason}）：请检查它的权限。
this is not an RWKV checkpoint (its first tensors are {names}): choose an RWKV-6 or RWKV-7 .pth.
    这不是 RWKV 检查点（开头的张量是 {names}）：请选择 RWKV-6 或 RWKV-7 的 .pth 文件。
this is an RWKV-7 with DeepEmbed, which llama.cpp cannot run: choose a checkpoint without DeepEmbed.
    这是带 DeepEmbed 的 RWKV-7，llama.cpp 无法运行：请选择不带 DeepEmbed 的检查点。
this is RWKV-{version}, which llama.cpp cannot run: choose an RWKV-6 or RWKV-7 checkpoint.
    这是 RWKV-{version}，llama.cpp 无法运行：请选择 RWKV-6 或 RWKV-7 检查点。
this is a variety of RWKV that ggufy does not know: choose an RWKV-6 or RWKV-7 checkpoint.
    ggufy 不认识这种 RWKV 变体：请选择 RWKV-6 或 RWKV-7 检查点。
the width {width} is not a multiple of the head size {size}: {damaged}.
    宽度 {width} 不是头大小 {size} 的倍数：{damaged}。
the checkpoint has no tensor {name}: {damaged}.
    检查点里没有张量 {name}：{damaged}。
{name} has the shape {shape}, not that of a matrix: {damaged}.
    {name} 的形状是 {shape}，不是矩阵：{damaged}。
{name} has the shape {shape}, but {expected} was expected: {damaged}.
    {name} 的形状是 {shape}，应为 {expected}：{damaged}。
of a single number
    单个数值
the checkpoint is damaged, or a variety of RWKV that ggufy does not know
    检查点已损坏，或是 ggufy 不认识的 RWKV 变体，请换一个检查点
{name} holds NaN values: the checkpoint is damaged, or its training failed; choose another one.
    {name} 含有 NaN：检查点已损坏，或训练失败；请换一个。
{name} holds infinite values: the checkpoint is damaged, or its training failed; choose another one.
    {name} 含有无穷大的值：检查点已损坏，或训练失败；请换一个。
{name} holds {value}, which is too large for {type}: convert with --outtype {outtype}.
    {name} 含有数值 {value}，超出 {type} 的范围：请把“基础类型”改为 {outtype}。

# ---- vocabularies
the World vocabulary {file} was not found: install it with `pip install rwkv`.
    没有找到 World 词表 {file}：请运行 `pip install rwkv` 安装。
the vocabulary {path} does not exist: check the path given with --vocab.
    词表 {path} 不存在：请检查“自带词表”中的路径。
{name} cannot be read as a vocabulary: give RWKV's text format with --vocab.
    {name} 无法作为词表读取：请在“自带词表”中填写 RWKV 文本格式的词表。
line {number} of {name} {wrong}: give a file in RWKV's vocabulary format with --vocab.
    {name} 第 {number} 行{wrong}：请在“自带词表”中填写 RWKV 词表格式的文件。
is not `id repr(token) length`
    不是 `id repr(token) length` 的形式
holds no Python string or bytes literal
    没有 Python 字符串或字节串字面量
holds no token
    没有词元
has the id {found} instead of {expected}
    的 id 是 {found}，应为 {expected}
announces {announced} bytes, but its token has {found}
    声明有 {announced} 字节，但词元有 {found} 字节
line {number} of {name} repeats the token of id {id} ({token}): every token must be there once.
    {name} 第 {number} 行与 id {id} 的词元（{token}）重复：每个词元只能出现一次，请修正词表。
emb.weight has {rows} rows, but the World vocabulary has {count} tokens (with id 0): give the checkpoint's own \
vocabulary file with --vocab.
    emb.weight 有 {rows} 行，而 World 词表有 {count} 个词元（含 id 0）：请在“自带词表”中填写该检查点自己的词表文件。
emb.weight has {rows} rows, but the vocabulary {name} has {count} tokens (with id 0): give the checkpoint's own \
vocabulary file with --vocab.
    emb.weight 有 {rows} 行，而词表 {name} 有 {count} 个词元（含 id 0）：请在“自带词表”中填写该检查点自己的词表文\
件。

# ---- GGUF files
{name} is not a sound GGUF file ({why}): fetch or convert it again.
    {name} 不是完好的 GGUF 文件（{why}）：请重新下载或转换。
it does not start with GGUF
    开头不是 GGUF
version {version} is not supported
    不支持版本 {version}
it announces more entries than it has bytes
    声明的条目数超过文件的字节数
its alignment is {alignment}
    对齐值是 {alignment}
tensor {name} has {count} dimensions
    张量 {name} 有 {count} 维
tensor {name} has the unknown type {type}
    张量 {name} 的类型 {type} 未知
tensor {name} has the impossible shape {shape}
    张量 {name} 的形状 {shape} 不可能存在
tensor {name} is listed twice
    张量 {name} 列出了两次
tensor {name} overlaps another one
    张量 {name} 与另一个张量重叠
it is cut off: {size} bytes, its tensors need {needed}
    文件被截断：只有 {size} 字节，张量需要 {needed} 字节
a value has the unknown type {type}
    某个值的类型 {type} 未知
an array is longer than the file
    有数组比文件还长
an array has the unknown type {type}
    某个数组的类型 {type} 未知
a text of {count} bytes is announced
    声明了一段 {count} 字节的文本
it ends in the middle of its head
    文件头不完整
{path} does not exist: check the path.
    {path} 不存在：请检查路径。
{path}: tensor {name} is {type}, expected F32.
    {path}：张量 {name} 的类型是 {type}，应为 F32；请重新转换模型。
{name} is {what}, not a model: give an unquantized .gguf of a model, or a .pth.
    {name} 是{what}，不是模型：请提供模型的未量化 .gguf 文件或 .pth 文件。
an adapter (LoRA)
    适配器（LoRA）
an imatrix
    imatrix 文件
the part of a model that sees or hears (mmproj)
    模型的视听部分（mmproj）
a control vector
    控制向量
{name} lacks tensors, such as {tensor}: fetch or convert it again.
    {name} 缺少张量，例如 {tensor}：请重新下载或转换。
{name} is for big-endian machines: fetch or convert one for little-endian ones.
    {name} 适用于大端序机器：请下载或转换小端序的文件。
llama.cpp cannot load {name} ({reason}): fetch or convert it again, or choose another model.
    llama.cpp 无法加载 {name}（{reason}）：请重新下载或转换，或选择其他模型。
{name} is a GGUF without a model in it: give an unquantized .gguf of a model, or a .pth.
    {name} 是 GGUF，但里面没有模型：请提供未量化的模型 .gguf 文件，或 .pth 文件。
{name} is quantized already: start from its F16, BF16 or F32 GGUF, or from the .pth.
    {name} 已经是量化文件：请使用它的 F16、BF16 或 F32 GGUF，或 .pth 文件。
{name} is one part of several: join them with llama-gguf-split --merge, and give the whole.
    {name} 只是多个分片之一：请用 llama-gguf-split --merge 合并后再使用。
{base} is quantized already: the base is the F16, BF16 or F32 file of the same model.
    {base} 已经是量化文件：请以同一模型的 F16、BF16 或 F32 文件作为基础。
{base} holds no vocabulary, so it cannot read a text: convert the model again.
    {base} 没有词表，无法读取文本：请重新转换模型。
{path} is no quant of {base} ({why}): give the base that it was made from.
    {path} 不是 {base} 的量化文件（{why}）：请提供制作它的基础文件。
{path} is no quant of {base} (it is {architecture}): give the base that it was made from.
    {path} 不是 {base} 的量化文件（它的架构是 {architecture}）：请提供制作它的基础文件。
its vocabulary has {count} tokens, not {expected}
    它的词表有 {count} 个词元，应为 {expected} 个
its tensors differ
    它的张量不同
its norms, which no quantization changes, differ
    它的归一化权重不同，而量化不会改变这些权重

# ---- places and addresses
{text} does not exist: give a .pth file, an unquantized .gguf, owner/repo:file.pth, or demo.
    {text} 不存在：请填写 .pth 文件、未量化的 .gguf 文件、owner/repo:file.pth 或 demo。
{text} is a folder: give a .pth file, an unquantized .gguf, owner/repo:file.pth, or demo.
    {text} 是文件夹：请填写 .pth 文件、未量化的 .gguf 文件、owner/repo:file.pth 或 demo。
the answer of {host} cannot be understood: check the network and run the same command again.
    无法理解 {host} 的回答：请检查网络，然后再次运行同一命令。
{text} is no address that can be fetched ({reason}): check it.
    {text} 不是可以下载的网址（{reason}）：请检查。
it holds a zero byte
    其中有零字节
it is too long
    它太长
an address with a password in it is not taken: it would end up in job records.
    不接受含有密码的网址，因为它会留在任务记录中：请去掉密码。
{text} is not the address of a model: give one that ends in .pth or .gguf.
    {text} 不是模型的网址：请填写以 .pth 或 .gguf 结尾的网址。
{text} is not the address of a model: give one that ends in .pth or .gguf, with #sha256=<64 hex digits> after it or \
nothing.
    {text} 不是模型的网址：请填写以 .pth 或 .gguf 结尾的网址，后面可加 #sha256=<64 位十六进制数>。
{url} holds another file than when the job was made: start it anew with --name.
    {url} 上的文件与创建任务时不同：请换一个“名称”重新开始。
the disk is full while fetching {name}: free some space.
    下载 {name} 时磁盘已满：请释放空间。
{name} arrived damaged (its size is another) and was removed: run the same command again.
    下载的 {name} 已损坏（大小不符），已经删除：请点“重试”。
{name} arrived damaged (its sha256 is another) and was removed: run the same command again.
    下载的 {name} 已损坏（sha256 不符），已经删除：请点“重试”。
{name} arrived damaged (its sha256 is not the one on the Hub) and was removed: run the same command again.
    下载的 {name} 已损坏（sha256 与 Hub 上的不符），已经删除：请点“重试”。
the server sends another file than {path} of commit {commit}: run the same command again.
    服务器发来的文件不是提交 {commit} 中的 {path}：请点“重试”。
the server of {url} does not send parts of files: download it yourself and give the file.
    {url} 的服务器不支持分段下载：请自行下载后填写文件路径。
the server of {name} does not say which version it sends.
    {name} 的服务器没有说明所发文件的版本。
{path} cannot be checked piece by piece.
    {path} 无法逐段校验。
{name} was not saved on a little-endian machine: save it again with torch.save.
    {name} 不是在小端序机器上保存的：请用 torch.save 重新保存。
{name} holds two lists of tensors that differ: download or copy it again.
    {name} 含有两份互不一致的张量列表：请重新下载或复制。
{name} is damaged (two of its records have one name): download or copy it again.
    {name} 已损坏（有两条记录同名）：请重新下载或复制。
{name} was compressed: save it again with torch.save.
    {name} 被压缩过：请用 torch.save 重新保存。
tensor {tensor} is not aligned
    张量 {tensor} 未对齐
the key {key} is listed twice
    键 {key} 重复出现
{name} is damaged (a record's header makes no sense): choose another one.
    {name} 已损坏（某条记录的头部无法解读）：请换一个文件。
record {key} of {name} arrived damaged (its CRC-32 is another): run the same command again, it continues.
    {name} 的记录 {key} 在下载中损坏（CRC-32 不符）：请点“重试”，会从中断处继续。
the server of {url} sends another part than was asked for: try again later.
    {url} 的服务器发来的不是所请求的部分：请稍后再试。
{url} has more than {size} of headers, too much to look at from here: download it yourself and give the file.
    {url} 的文件头超过 {size}，无法远程查看：请自行下载后填写文件路径。
{url} was not answered within {seconds} seconds: try again later.
    {url} 在 {seconds} 秒内没有响应：请稍后再试。
{url} is not on the public internet: download it yourself and give the file.
    {url} 不在公共互联网上：请自行下载后填写文件路径。
{url} is redirected again and again: give the address of the file itself.
    {url} 不断重定向：请填写文件本身的网址。
{url} is a web page, not a model: give the address of the file itself.
    {url} 是网页，不是模型：请填写文件本身的网址。
{url} is a web page, not a text file: give the address of the raw file.
    {url} 是网页，不是文本文件：请填写原始文件的网址。
{url} is larger than {size}: give a shorter text.
    {url} 大于 {size}：请换一份较短的文本。
{name} could not be fetched ({reason}): run the same command again.
    无法下载 {name}（{reason}）：请点“重试”。
the download of {name} needs {needed} more and {free} are free: free some space and run the same command again, it \
continues.
    下载 {name} 还需要 {needed}，可用空间为 {free}：请释放空间后点“重试”，下载会接着进行。
another run is downloading {name}: wait for it to end.
    另一个任务正在下载 {name}：请等它结束后再试。
the source needs {needed} in {folder} and {free} are free: free some space or set GGUFY_CACHE to another disk.
    来源在 {folder} 中需要 {needed}，可用空间为 {free}：请释放空间，或把 GGUFY_CACHE 设到另一块磁盘。
{path} changed since the job was made: put the file back, or start anew with --name.
    {path} 在创建任务之后有改动：请恢复原文件，或换一个“名称”重新开始。
{source} is {type} and is taken as it is: add --outtype {outtype}.
    {source} 的类型是 {type}，将原样使用：请把“基础类型”改为 {outtype}。
the answer held nothing new
    没有收到新的内容
the place that the redirect led to refuses
    重定向到的地址拒绝访问
"""
