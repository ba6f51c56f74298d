"""Bytes → structs, strictly: fast when the document is right, thorough when it is not.

The fast way is msgspec's typed decoder, which stops at the first fault. Only when it refuses is the document read a
second time, untyped, to name every offending element. So the truth about shapes stays in one place, ``schema``.

Knows: JSON and types. Does not know: what the elements mean.
Of duplicate keys in an object the last one counts.
"""

from __future__ import annotations

import functools
import json
import math
import re
import types
from difflib import get_close_matches
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from app.api.faults import Faults, pointer
from app.api.schema import BatchEnvelope
from app.errors import BadJson, InvalidInput

T = TypeVar("T")
E = TypeVar("E", bound=BatchEnvelope)

# A second, untyped reading costs up to thirty times the bytes in memory. 2,048 candles have about 350 kB; longer
# documents get their first fault only.
EXPLAINED_BYTES: Final = 2**19
LONGEST_INTEGER: Final = 308  # digits that a double holds for certain

SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")

REFUSALS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Unusable:
    """Stands for a number that JSON or a double cannot hold."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


class _Peek(msgspec.Struct):
    items: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    kind: Any = None


def decode(body: bytes, kind: type[T]) -> T:
    """One document of struct ``kind``. Raises BadJson or InvalidInput (every offending element, up to a cap)."""
    try:
        document: T = _decoder(kind).decode(body)  # type: ignore[arg-type]  # a class can be hashed
    except REFUSALS as refusal:
        return _thorough(_untyped(body, refusal), kind, "")
    return document


def peek(body: bytes) -> tuple[bool, Any]:
    """Whether the document has a key ``items``, and its ``kind``, whatever that is. Raises BadJson."""
    try:
        seen = _decoder(_Peek).decode(body)
        return seen.items is not msgspec.UNSET, seen.kind
    except REFUSALS as refusal:
        document = _untyped(body, refusal)
        return ("items" in document, document.get("kind")) if isinstance(document, dict) else (False, None)


def decode_batch(body: bytes, kind: type[T], outer: type[E]) -> tuple[E, list[T | InvalidInput]]:
    """A batch in an envelope ``outer`` with items of struct ``kind``: the envelope, and for each item the struct or what is
    wrong.

    Raises BadJson or InvalidInput when the envelope itself cannot be used.
    """
    try:
        envelope: E = _decoder(outer).decode(body)
    except REFUSALS as refusal:
        document = _untyped(body, refusal)
        faults = Faults()
        _examine(document, outer, "", faults)
        faults.raise_if_any()
        rest = {key: value for key, value in document.items() if key != "items"}
        return outer(items=[], **rest), [
            _attempt(functools.partial(_thorough, item, kind, pointer("items", index)))
            for index, item in enumerate(document["items"])
        ]
    return envelope, [
        _attempt(functools.partial(_decode_item, bytes(raw), kind, pointer("items", index)))
        for index, raw in enumerate(envelope.items)
    ]


def _attempt(produce: functools.partial[T]) -> T | InvalidInput:
    try:
        return produce()
    except InvalidInput as error:
        return error


def _decode_item(raw: bytes, kind: type[T], prefix: str) -> T:
    try:
        item: T = _decoder(kind).decode(raw)  # type: ignore[arg-type]  # as above
    except REFUSALS as refusal:
        try:
            return _thorough(_untyped(raw, refusal, prefix), kind, prefix)
        except BadJson as error:
            raise InvalidInput([(prefix, error.detail)]) from error
    return item


@functools.cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)


def _thorough(document: Any, kind: type[T], prefix: str) -> T:
    faults = Faults(prefix)
    _examine(document, kind, "", faults)
    faults.raise_if_any()
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise InvalidInput([_first_fault(str(error), prefix)]) from error


def _untyped(body: bytes, refusal: Exception, prefix: str = "") -> Any:
    """The document as plain objects, numbers out of range replaced by ``_Unusable``."""
    if isinstance(refusal, RecursionError):
        raise BadJson("the document is nested too deeply") from refusal
    if len(body) > EXPLAINED_BYTES:
        if isinstance(refusal, msgspec.ValidationError):
            raise InvalidInput([_first_fault(str(refusal), prefix)]) from refusal
        raise BadJson(f"not a JSON document: {refusal}") from refusal
    try:
        document = json.loads(body.decode("utf-8"), parse_constant=_constant, parse_int=_integer, parse_float=_float)
        if SURROGATE.search(body):  # stdlib lets half of a pair pass; nothing could send it back
            json.dumps(document, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadJson("a string holds half of a surrogate pair") from error
    except UnicodeDecodeError as error:
        raise BadJson(f"the document is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise BadJson(f"not a JSON document: {error.msg} (character {error.pos})") from error
    except RecursionError as error:
        raise BadJson("the document is nested too deeply") from error
    return document


def _constant(name: str) -> _Unusable:
    return _Unusable(f"{name} is not a JSON number")


def _integer(digits: str) -> int | _Unusable:
    if len(digits) > LONGEST_INTEGER:
        return _Unusable(f"an integer of {len(digits.lstrip('-'))} digits is out of range")
    return int(digits)


def _float(digits: str) -> float | _Unusable:
    value = float(digits)
    return value if math.isfinite(value) else _Unusable(f"{digits[:24]} is out of range")


def _first_fault(message: str, prefix: str) -> tuple[str, str]:
    """msgspec's ``Expected …, got … - at `$.candles[3].high` `` as a pointer and a detail."""
    detail, _, path = message.partition(" - at `$")
    return prefix + "".join("/" + token for token in re.findall(r"[^.\[\]`]+", path)), detail


def _examine(value: Any, kind: Any, where: str, faults: Faults) -> None:
    """Add to ``faults`` everything in ``value`` that msgspec would refuse for ``kind``."""
    refusal = None if faults.full or kind is msgspec.Raw else _refusal(value, kind)
    if refusal is None:
        return
    bare = _bare(kind)
    if isinstance(value, _Unusable):
        faults.add(where, value.reason)
    elif get_origin(bare) in (Union, types.UnionType):
        _examine(value, get_args(bare)[0], where, faults)
    elif get_origin(bare) is list and isinstance(value, list):
        if misfit := _refusal(value, _list_bounds(kind)):
            faults.add(where, misfit)
        for index, element in enumerate(value):
            if faults.full:
                break
            _examine(element, get_args(bare)[0], f"{where}/{index}", faults)
    elif isinstance(bare, type) and issubclass(bare, msgspec.Struct) and isinstance(value, dict):
        _examine_struct(value, bare, where, faults)
    else:
        faults.add(where, refusal)


def _examine_struct(value: dict[str, Any], kind: type[msgspec.Struct], where: str, faults: Faults) -> None:
    hints = _hints(kind)
    for key in value:
        if key not in hints:
            close = get_close_matches(key[:40], hints, n=1)
            faults.add(where + pointer(key[:80]), "unknown field" + (f"; did you mean {close[0]}?" if close else ""))
    for field in msgspec.structs.fields(kind):
        if field.name in value:
            _examine(value[field.name], hints[field.name], f"{where}/{field.name}", faults)
        elif field.required:
            faults.add(f"{where}/{field.name}", "is required")


def _refusal(value: Any, kind: Any) -> str | None:
    """Why msgspec refuses ``value`` for ``kind``; None if it does not."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return str(error).partition(" - at `$")[0]
    return None


@functools.cache
def _hints(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _bare(kind: Any) -> Any:
    """``kind`` without its annotations."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return kind


def _list_bounds(kind: Any) -> Any:
    """``kind`` with its bounds on the length and with elements of any type."""
    metas = getattr(kind, "__metadata__", ())
    return Annotated[(list[Any], *metas)] if metas else list[Any]
