"""Go's text/template, as far as --format needs it, on plain Python values.

A template is compiled into nested functions once and then run for each row. Values are what JSON
has, plus functions for Docker's methods (`{{.Label "k"}}`). What must not go in: what a row of
`ps` holds, tables, printing.

Semantics: https://pkg.go.dev/text/template; a field that is not there is an error, as in Docker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from scow.cli.template_functions import FUNCTIONS, show, truth
from scow.native.errors import InvalidArgument

MAX_TEMPLATE_CHARS = 64 * 1024
MAX_DEPTH = 50

Expression: TypeAlias = "Callable[[Scope], object]"
Statement: TypeAlias = "Callable[[Scope, list[str]], None]"

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    | (?P<number>-?\d+(?:\.\d+)?)
    | (?P<variable>\$\w*)
    | (?P<field>(?:\.\w+)+)
    | (?P<dot>\.)
    | (?P<assign>:?=)
    | (?P<word>\w+)
    | (?P<mark>[|(),])
    )""",
    re.VERBOSE,
)
_ACTION = re.compile(
    r"\{\{(-\s)?\s*(/\*.*?\*/|(?:\"(?:[^\"\\]|\\.)*\"|`[^`]*`|[^\"`])*?)\s*(\s-)?\}\}", re.DOTALL
)


class TemplateError(InvalidArgument):
    """The template is not well formed, or asks for what is not there."""


class Scope:
    """The dot, and the variables."""

    __slots__ = ("dot", "variables")

    def __init__(self, dot: object, variables: dict[str, object]) -> None:
        self.dot = dot
        self.variables = variables

    def at(self, dot: object, **variables: object) -> Scope:
        """The same with another dot."""
        return Scope(dot, {**self.variables, **variables})


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class Template:
    """A compiled template."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError("invalid --format: the template is longer than 64 KiB")
        self._body = _Parser(source).parse()

    def render(self, dot: object) -> str:
        """The text for one value."""
        out: list[str] = []
        self._body(Scope(dot, {"$": dot}), out)
        return "".join(out)


class _Parser:
    """Text and actions of a whole template."""

    def __init__(self, source: str) -> None:
        self._parts = list(_split(source))
        self._position = 0
        self._depth = 0

    def parse(self) -> Statement:
        body, ending = self._block()
        if ending is not None:
            raise TemplateError(f"invalid --format: unexpected '{{{{{ending}}}}}'")
        return body

    def _block(self) -> tuple[Statement, str | None]:
        """Statements up to an `end` or `else`, and that ending."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise TemplateError("invalid --format: nested too deeply")
        statements: list[Statement] = []
        ending = None
        while self._position < len(self._parts):
            is_action, text = self._parts[self._position]
            self._position += 1
            if not is_action:
                statements.append(_literal(text))
                continue
            word = text.split(None, 1)[0] if text else ""
            if word in ("end", "else"):
                ending = text
                break
            statements.append(self._action(word, text))
        self._depth -= 1
        return _sequence(statements), ending

    def _action(self, word: str, text: str) -> Statement:
        rest = text[len(word) :]
        if word == "if":
            return self._if(rest)
        if word == "range":
            return self._range(rest)
        if word == "with":
            return self._with(rest)
        if word in ("break", "continue") and not rest:
            return _jump(_Break if word == "break" else _Continue)
        if word in ("define", "template", "block"):
            raise TemplateError(f"invalid --format: '{{{{{word}}}}}' is not supported")
        return _Pipeline(text).statement()

    def _branches(self, what: str) -> tuple[Statement, Statement]:
        body, ending = self._block()
        other: Statement = _literal("")
        if ending is not None and ending != "end":
            words = ending.split(None, 2)
            if words[1:2] == [what] or (what == "with" and words[1:2] == ["with"]):
                other = self._action(words[1], words[1] + " " + " ".join(words[2:]))
                return body, other
            if len(words) > 1:
                raise TemplateError(f"invalid --format: unexpected '{{{{{ending}}}}}'")
            other, ending = self._block()
        if ending != "end":
            raise TemplateError(f"invalid --format: '{{{{{what}}}}}' without '{{{{end}}}}'")
        return body, other

    def _if(self, text: str) -> Statement:
        names, condition = _Pipeline(text).declaration()
        body, other = self._branches("if")

        def run(scope: Scope, out: list[str]) -> None:
            value = condition(scope)
            inner = scope.at(scope.dot, **dict.fromkeys(names, value))
            (body if truth(value) else other)(inner, out)

        return run

    def _with(self, text: str) -> Statement:
        names, condition = _Pipeline(text).declaration()
        body, other = self._branches("with")

        def run(scope: Scope, out: list[str]) -> None:
            value = condition(scope)
            if truth(value):
                body(scope.at(value, **dict.fromkeys(names, value)), out)
            else:
                other(scope, out)

        return run

    def _range(self, text: str) -> Statement:
        names, expression = _Pipeline(text).declaration()
        body, other = self._branches("range")

        def run(scope: Scope, out: list[str]) -> None:
            pairs = _pairs(expression(scope))
            if not pairs:
                other(scope, out)
            for key, value in pairs:
                found = (value,) if len(names) == 1 else (key, value)
                try:
                    body(scope.at(value, **dict(zip(names, found, strict=False))), out)
                except _Continue:
                    continue
                except _Break:
                    break

        return run


def _pairs(value: object) -> list[tuple[object, object]]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [(key, value[key]) for key in sorted(value)]
    if isinstance(value, int) and not isinstance(value, bool):
        return [(number, number) for number in range(min(value, 100_000))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return list(enumerate(value))
    raise TemplateError(f"invalid --format: range over {show(value)!r}, which is not a list")


def _split(source: str) -> list[tuple[bool, str]]:
    parts: list[tuple[bool, str]] = []
    position = 0
    trim = False
    for match in _ACTION.finditer(source):
        text = source[position : match.start()]
        text = text.lstrip() if trim else text
        parts.append((False, text.rstrip() if match[1] else text))
        if not match[2].startswith("/*"):
            parts.append((True, match[2]))
        trim = bool(match[3])
        position = match.end()
    tail = source[position:]
    if "{{" in tail:
        raise TemplateError("invalid --format: unclosed '{{'")
    parts.append((False, tail.lstrip() if trim else tail))
    return parts


def _literal(text: str) -> Statement:
    def run(_scope: Scope, out: list[str]) -> None:
        out.append(text)

    return run


def _sequence(statements: list[Statement]) -> Statement:
    def run(scope: Scope, out: list[str]) -> None:
        for statement in statements:
            statement(scope, out)

    return run


def _jump(kind: type[Exception]) -> Statement:
    def run(_scope: Scope, _out: list[str]) -> None:
        raise kind

    return run


class _Pipeline:
    """What stands in one action: `$x := .A.B | join "," | upper`."""

    def __init__(self, text: str) -> None:
        self._text = text.strip()
        self._tokens: list[tuple[str, str]] = []
        self._position = 0
        position = 0
        while position < len(self._text):
            match = _TOKEN.match(self._text, position)
            if match is None:
                raise self._error(f"unexpected {self._text[position : position + 10]!r}")
            kind = match.lastgroup
            assert kind is not None
            self._tokens.append((kind, match[kind]))
            position = match.end()

    def _error(self, reason: str) -> TemplateError:
        shown = "".join(c if c.isprintable() else " " for c in self._text[:80])
        return TemplateError(f"invalid --format: in '{{{{{shown}}}}}': {reason}")

    def _peek(self, ahead: int = 0) -> tuple[str, str]:
        position = self._position + ahead
        return self._tokens[position] if position < len(self._tokens) else ("end", "")

    def statement(self) -> Statement:
        """The action as a statement: it prints, or sets a variable."""
        if self._peek()[0] == "variable" and self._peek(1)[0] == "assign":
            names, expression = self.declaration()

            def assign(scope: Scope, _out: list[str]) -> None:
                scope.variables[names[0]] = expression(scope)

            return assign
        expression = self._whole()

        def run(scope: Scope, out: list[str]) -> None:
            out.append(show(expression(scope)))

        return run

    def declaration(self) -> tuple[list[str], Expression]:
        """`$k, $v := pipeline`, or a pipeline alone."""
        names: list[str] = []
        ahead = 0
        while self._peek(ahead)[0] == "variable":
            names.append(self._peek(ahead)[1])
            ahead += 1
            if self._peek(ahead) == ("mark", ","):
                ahead += 1
        if names and self._peek(ahead)[0] == "assign":
            self._position = ahead + 1
        else:
            names = []
        return names, self._whole()

    def _whole(self) -> Expression:
        expression = self._pipeline(0)
        if self._peek()[0] != "end":
            raise self._error(f"unexpected {self._peek()[1]!r}")
        return lambda scope: _value(expression(scope))

    def _pipeline(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise self._error("nested too deeply")
        expression = self._command(None, depth)
        while self._peek() == ("mark", "|"):
            self._position += 1
            expression = self._command(expression, depth)
        return expression

    def _command(self, piped: Expression | None, depth: int) -> Expression:
        kind, text = self._peek()
        if kind == "word" and text not in ("true", "false", "nil"):
            if text not in FUNCTIONS:
                raise self._error(f"function {text!r} is not defined")
            self._position += 1
            return self._call(text, [*self._arguments(depth), *([piped] if piped else [])])
        operands = self._arguments(depth)
        if not operands:
            raise self._error("something is missing")
        if piped:
            operands.append(piped)
        first, *rest = operands
        return first if not rest else self._method(first, rest)

    def _method(self, target: Expression, arguments: list[Expression]) -> Expression:
        def run(scope: Scope) -> object:
            function = target(scope)
            if isinstance(function, _Method):
                return function.call([argument(scope) for argument in arguments])
            raise self._error("it takes no arguments")

        return run

    def _call(self, name: str, arguments: list[Expression]) -> Expression:
        if name in ("and", "or"):
            return _short_circuit(name == "and", arguments)
        function = FUNCTIONS[name]

        def run(scope: Scope) -> object:
            try:
                return function(*[_value(argument(scope)) for argument in arguments])
            except (TypeError, ValueError, LookupError, AttributeError) as error:
                raise self._error(f"{name}: {error}") from error

        return run

    def _arguments(self, depth: int) -> list[Expression]:
        found: list[Expression] = []
        while True:
            expression = self._operand(depth)
            if expression is None:
                return found
            while self._peek()[0] == "field" and self._glued():
                expression = self._path(expression, self._peek()[1])
                self._position += 1
            found.append(expression)

    def _glued(self) -> bool:
        # `$x.Name` and `(f).Name`: a field right after an operand belongs to it.
        return self._tokens[self._position - 1][0] == "variable" or self._tokens[
            self._position - 1
        ] == ("mark", ")")

    def _operand(self, depth: int) -> Expression | None:
        kind, text = self._peek()
        if kind == "end" or (kind == "mark" and text != "("):
            return None
        self._position += 1
        if kind == "mark":
            inner = self._pipeline(depth + 1)
            if self._peek() != ("mark", ")"):
                raise self._error("a ')' is missing")
            self._position += 1
            return inner
        if kind == "field":
            return self._path(lambda scope: scope.dot, text)
        if kind == "dot":
            return lambda scope: scope.dot
        if kind == "variable":
            return self._variable(text)
        return self._constant(kind, text)

    def _variable(self, name: str) -> Expression:
        def run(scope: Scope) -> object:
            if name not in scope.variables:
                raise self._error(f"variable {name!r} is not defined")
            return scope.variables[name]

        return run

    def _constant(self, kind: str, text: str) -> Expression:
        if kind == "string":
            value: object = text[1:-1] if text[0] == "`" else _unescape(text[1:-1])
        elif kind == "number":
            value = float(text) if "." in text else int(text)
        elif text in ("true", "false", "nil"):
            value = {"true": True, "false": False, "nil": None}[text]
        elif text in FUNCTIONS:
            return self._call(text, [])
        else:
            raise self._error(f"unexpected {text!r}")
        return lambda scope: value

    def _path(self, start: Expression, path: str) -> Expression:
        names = path[1:].split(".")

        def run(scope: Scope) -> object:
            value = start(scope)
            for name in names:
                value = self._field(_value(value), name)
            return value

        return run

    def _field(self, value: object, name: str) -> object:
        if isinstance(value, Mapping):
            if name in value:
                found = value[name]
                return _Method(found) if callable(found) else found
            close = [key for key in value if str(key).lower() == name.lower()]
            known = f"did you mean '.{close[0]}'?" if close else ""
            if not close and len(value) <= 40:
                known = "there are " + " ".join(f".{key}" for key in value)
            raise TemplateError(
                f"invalid --format: there is no field '.{name}'", hint=known or None
            )
        raise self._error(f"'.{name}' of a value that has no fields")


class _Method:
    """A field that is computed when asked for, with or without arguments."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def call(self, arguments: list[object]) -> object:
        try:
            return self._function(*arguments)
        except TypeError as error:
            raise TemplateError(f"invalid --format: wrong arguments: {error}") from error

    def __str__(self) -> str:
        return show(self.call([]))


def _value(value: object) -> object:
    return value.call([]) if isinstance(value, _Method) else value


def _short_circuit(stop_at: bool, arguments: list[Expression]) -> Expression:
    def run(scope: Scope) -> object:
        value: object = None
        for argument in arguments:
            value = _value(argument(scope))
            if truth(value) != stop_at:
                break
        return value

    return run


def _unescape(text: str) -> str:
    simple = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}
    return re.sub(r"\\(.)", lambda match: simple.get(match[1], match[0]), text)
