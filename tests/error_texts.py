"""Finds every sentence that an error can have, by reading the source.

`sentences()` looks for errors that are made, and follows their text to the strings that it is put together from:
through f-strings, conditions, constants, variables, arguments, and functions that return text. What is known only when
the program runs, such as a path, becomes a hole: the expression in double brackets, as in `⟦path.name⟧ is empty`.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOLE = re.compile("⟦[^⟧]*⟧")
_BUILTIN = {"AssertionError", "ValueError", "TypeError", "KeyError", "AttributeError", "KeyboardInterrupt"}
_LETTERS = re.compile("[A-Za-z]{2}")
_MOST = 200  # alternatives of one sentence
_DEEPEST = 8
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Sentence:
    """One text of an error, and where it is made."""

    place: str  # file:line
    text: str


class Module:
    """One source file, and the answers to "what can this expression be?" in it."""

    def __init__(self, path: Path):
        self.name = path.relative_to(ROOT).as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.nodes = list(ast.walk(self.tree))
        self.above = {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}
        self.functions: dict[str, list[Function]] = {}
        for node in self.nodes:
            if isinstance(node, Function):
                self.functions.setdefault(node.name, []).append(node)

    def texts(self, node: ast.expr, deep: int = 0) -> set[str]:
        """Everything that the expression may be, with holes."""
        found: set[str] = set()
        match node:
            case ast.Constant(value=str(text)):
                return {text}
            case ast.JoinedStr():
                pieces = [self.texts(piece, deep) for piece in node.values]
                return {"".join(chosen) for chosen in itertools.islice(itertools.product(*pieces), _MOST)}
            case ast.FormattedValue(conversion=-1, format_spec=None):
                return self.texts(node.value, deep)
            case ast.IfExp():
                return self.texts(node.body, deep) | self.texts(node.orelse, deep)
            case ast.BoolOp(op=ast.Or()):
                return set().union(*(self.texts(value, deep) for value in node.values))
            case ast.List(elts=items) | ast.Tuple(elts=items):  # of which one is taken
                return set().union(*(self.texts(item, deep) for item in items))
            case ast.BinOp(op=ast.Add()):
                pairs = itertools.product(self.texts(node.left, deep), self.texts(node.right, deep))
                return {left + right for left, right in pairs}
        for expression, module in self.origins(node) if deep < _DEEPEST else ():
            found |= module.texts(expression, deep + 1)
        known = {text for text in found if HOLE.sub("", text) or not text}
        return known if known and known == found else known | {f"⟦{ast.unparse(node)}⟧"}

    def origins(self, node: ast.expr) -> Iterator[tuple[ast.expr, Module]]:
        """The expressions that a name, an attribute or a call gets its value from."""
        match node:
            case ast.Name():
                yield from self.assigned(node)
            case ast.Subscript(value=several, slice=ast.Constant(value=int())):
                yield several, self
            case ast.Attribute(value=ast.Name(id="self")):
                wanted = ast.unparse(node)
                for other in self.nodes:
                    if isinstance(other, ast.Assign) and any(ast.unparse(t) == wanted for t in other.targets):
                        yield other.value, self
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                for function, module in defined(name, self):
                    if isinstance(function.returns, ast.Name) and function.returns.id == "str":
                        for other in ast.walk(function):
                            if isinstance(other, ast.Return) and other.value is not None:
                                yield other.value, module

    def assigned(self, node: ast.Name) -> Iterator[tuple[ast.expr, Module]]:
        """Where a variable, a constant, an argument or a caught error gets its text."""
        scope: ast.AST | None = node
        while scope is not None:
            scope = self.above.get(scope)
            match scope:
                case ast.ExceptHandler(name=node.id, type=ast.Name(id="ValueError")):
                    yield from ((arguments[0], self) for _, arguments in self.raised("ValueError") if arguments)
                    return
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Module():
                    values = self.reaching(scope, node)
                    yield from ((value, self) for value in values)
                    if isinstance(scope, Function) and node.id in _names(scope):
                        yield from calls_with(scope, node.id, self)
                        return
                    if values:
                        return

    def reaching(self, scope: ast.AST, use: ast.Name) -> list[ast.expr]:
        """What is assigned to a name in a function or module and may still be its value: in its other branches, and
        before the last assignment that is always made, it is another one."""
        values = list(_given(scope, use.id))
        if not isinstance(scope, Function):
            return values
        before = sorted((value for value in values if value.lineno <= use.lineno), key=lambda value: value.lineno)
        around = set(self.all_above(use))
        always = [number for number, value in enumerate(before) if self.above[self.statement(value)] in around]
        return before[always[-1] :] if always else before

    def all_above(self, node: ast.AST) -> Iterator[ast.AST]:
        while (above := self.above.get(node)) is not None:
            yield above
            node = above

    def statement(self, node: ast.AST) -> ast.AST:
        return next(above for above in self.all_above(node) if isinstance(above, ast.stmt))

    def raised(self, name: str) -> Iterator[tuple[ast.Raise, list[ast.expr]]]:
        for node in self.nodes:
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == name:
                yield node, node.exc.args

    def made(self, classes: frozenset[str]) -> Iterator[tuple[ast.Call, ast.expr]]:
        """Every error that is made here, and other places whose text reaches the page, with the text."""
        for node in self.nodes:
            if not isinstance(node, ast.Call):
                continue
            name, above = ast.unparse(node.func), self.above.get(node)
            ours = name in classes or (isinstance(above, ast.Raise) and name not in _BUILTIN)
            if node.args and (ours or name.endswith("wanted.error")):
                yield node, node.args[0]
            if name.endswith("report") and len(node.args) == 3:  # what the set-up is doing
                yield node, node.args[2]
            yield from ((node, word.value) for word in node.keywords if word.arg in ("error", "problem"))


def _given(scope: ast.AST, name: str) -> Iterator[ast.expr]:
    """What is assigned to a name in a function or module, and not in a function inside it."""
    inside = list(ast.iter_child_nodes(scope))
    while inside:
        node = inside.pop()
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                yield value
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                yield from (value for target, value in zip(names, values, strict=True) if ast.unparse(target) == name)
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.expr() as value) if found == name:
                yield value
            case ast.NamedExpr(target=ast.Name(id=found), value=value) if found == name:
                yield value
        if not isinstance(node, Function | ast.ClassDef):
            inside.extend(ast.iter_child_nodes(node))


def _names(function: Function) -> list[str]:
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


@cache
def modules() -> tuple[Module, ...]:
    tables = (ROOT / "ggufy" / "ui").glob("*_zh*.py")
    return tuple(Module(path) for path in sorted({*(ROOT / "ggufy").rglob("*.py")} - {*tables}))


def defined(name: str, module: Module) -> list[tuple[Function, Module]]:
    """The functions of that name in the module, else the one in the package if there is just one."""
    if here := module.functions.get(name):
        return [(function, module) for function in here]
    elsewhere = [(function, other) for other in modules() for function in other.functions.get(name, ())]
    return elsewhere if len(elsewhere) == 1 else []


def calls_with(function: Function, name: str, module: Module) -> Iterator[tuple[ast.expr, Module]]:
    """What is passed for an argument: in the module, or anywhere if the function's name is one of a kind."""
    alone = sum(len(other.functions.get(function.name, ())) for other in modules()) == 1
    place = _names(function).index(name)
    for node, other in calls().get(function.name, ()):
        if other is module or alone:
            yield from ((word.value, other) for word in node.keywords if word.arg == name)
            if place < len(node.args) and not any(isinstance(given, ast.Starred) for given in node.args):
                yield node.args[place], other


@cache
def calls() -> dict[str, list[tuple[ast.Call, Module]]]:
    """Every call, by the last part of what is called."""
    found: dict[str, list[tuple[ast.Call, Module]]] = {}
    for module in modules():
        for node in module.nodes:
            match node:
                case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                    found.setdefault(name, []).append((node, module))
    return found


@cache
def error_classes() -> frozenset[str]:
    """GgufyError and everything below it."""
    found, before = {"GgufyError"}, 0
    while len(found) > before:
        before = len(found)
        for module in modules():
            for node in module.nodes:
                if isinstance(node, ast.ClassDef) and found & {ast.unparse(base) for base in node.bases}:
                    found.add(node.name)
    return frozenset(found)


@cache
def sentences() -> tuple[Sentence, ...]:
    """Every text of an error; those that consist of a hole alone are left out."""
    return tuple(
        Sentence(f"{module.name}:{node.lineno}", text)
        for module in modules()
        for node, expression in module.made(error_classes())
        for text in sorted(module.texts(expression))
        if _LETTERS.search(HOLE.sub("", text))
    )


@cache
def untold() -> tuple[str, ...]:
    """Where an error is made whose text cannot be found."""
    return tuple(
        f"{module.name}:{node.lineno}"
        for module in modules()
        for node, expression in module.made(error_classes())
        if ast.unparse(node.func) in error_classes()
        if not any(_LETTERS.search(HOLE.sub("", text)) for text in module.texts(expression))
    )


@cache
def literals() -> frozenset[str]:
    """Every string of the source, error or not, with a hole for whatever is put into it."""
    found = set()
    for node in itertools.chain.from_iterable(module.nodes for module in modules()):
        match node:
            case ast.Constant(value=str(text)):
                found.add(text)
            case ast.JoinedStr(values=pieces):
                found.add("".join(str(p.value) if isinstance(p, ast.Constant) else "⟦⟧" for p in pieces))
    return frozenset(found)
