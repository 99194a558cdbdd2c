"""Changes to a model that keep it a model: fields get other values, messages come, go and change places.

Bytes that are changed blindly seldom get past protobuf; these get to where names, types and shapes are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import DecodeError, Message

WHOLE = (0, 1, 2, 3, 7, 8, 255, -1, -2, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
"""Numbers that are small, or just at the end of what fits."""

BROKEN = (0.0, 1.0, -1.0, 1e38, -1e38, float("inf"), float("nan"))

WORDS = (
    "",
    "x",
    "Conv",
    "MatMul",
    "If",
    "Loop",
    "Constant",
    "QLinearConv",
    "DequantizeLinear",
    "ai.onnx",
    "com.microsoft",
)
"""Names that mean something, beside those of the model."""

DEEPER = 0.8
"""How likely a change is inside a message rather than to the message itself."""

MOST = 4
"""Changes at once."""

BLIND = 0.2
"""How often bytes are changed blindly, all the same."""

Blindly = Callable[[bytes, int], bytes]


def flipped(content: bytes, most: int) -> bytes:
    """With one bit of a byte in the middle turned over; what changes nothing else is no help to guided fuzzing."""
    found = bytearray(content[:most] or b"\0")
    found[len(found) // 2] ^= 1
    return bytes(found)


def mutate(content: bytes, most: int, seed: int, blindly: Blindly) -> bytes:
    """Another file, like this one.

    Args:
        content: a model, or anything.
        most: bytes that the other may have.
        seed: of all chance.
        blindly: changes bytes.
    """
    random = Random(seed)
    if random.random() < BLIND:
        return blindly(content, most)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
        names = names_of(model)
        for _ in range(random.randint(1, MOST)):
            change(model, random, names, blindly)
        changed = model.SerializeToString()
    except (DecodeError, UnicodeError):  # no model, or names that are no text
        changed = b""
    return changed if 0 < len(changed) <= most else blindly(content, most)


def names_of(model: onnx.ModelProto) -> Sequence[str]:
    """Names that a model uses, and some that mean something."""
    graph = model.graph
    own = [name for node in graph.node for name in (*node.input, *node.output, node.op_type)]
    own += [value.name for values in (graph.input, graph.output, graph.initializer) for value in values]
    return [*WORDS, *own]


def change(message: Message, random: Random, names: Sequence[str], blindly: Blindly) -> None:
    """One change somewhere in a message."""
    inner = [part for field, value in message.ListFields() for part in parts(field, value)]
    if inner and random.random() < DEEPER:
        weights = [1 + part.ByteSize() ** 0.5 for part in inner]  # a graph more often than the number of its opset
        change(random.choices(inner, weights)[0], random, names, blindly)
        return
    field = random.choice(message.DESCRIPTOR.fields)
    if field.is_repeated:
        shuffle(getattr(message, field.name), field, random, names, blindly)
    elif random.random() < 0.2:
        message.ClearField(field.name)
    elif field.type == Field.TYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
    else:
        before = getattr(message, field.name) if field.type == Field.TYPE_BYTES else b""
        setattr(message, field.name, other(field, before, random, names, blindly))


def parts(field: Field, value: Any) -> Sequence[Message]:
    """The messages in a field."""
    if field.type != Field.TYPE_MESSAGE:
        return ()
    return list(value) if field.is_repeated else [value]


def shuffle(values: Any, field: Field, random: Random, names: Sequence[str], blindly: Blindly) -> None:
    """One value more, fewer, or elsewhere."""
    deed = random.randrange(4)
    place = random.randrange(len(values)) if values else 0
    if values and deed == 0:
        del values[place]
    elif values and deed == 1:  # the last one changes places
        last = values.pop()
        values.insert(place, last)
    elif field.type == Field.TYPE_MESSAGE:
        made = values.add()
        if values and deed == 2:
            made.CopyFrom(values[place])
    elif values and deed == 2:
        before = values[place] if field.type == Field.TYPE_BYTES else b""
        values[place] = other(field, before, random, names, blindly)
    else:
        values.append(other(field, b"", random, names, blindly))


def other(field: Field, before: bytes, random: Random, names: Sequence[str], blindly: Blindly) -> Any:
    """Another value for a field; for bytes it comes from those that were there before."""
    if field.type == Field.TYPE_STRING:
        return random.choice(names)
    if field.type == Field.TYPE_BYTES:
        cut = before[: random.randint(0, len(before))]
        return blindly(before, max(16, 2 * len(before))) if random.random() < 0.5 else cut
    if field.type == Field.TYPE_ENUM:
        return random.choice(field.enum_type.values).number
    if field.cpp_type in (Field.CPPTYPE_FLOAT, Field.CPPTYPE_DOUBLE):
        return random.choice(BROKEN)
    narrow = field.cpp_type in (Field.CPPTYPE_INT32, Field.CPPTYPE_UINT32)
    lowest, highest = (-(2**31), 2**31 - 1) if narrow else (-(2**63), 2**63 - 1)
    if field.cpp_type in (Field.CPPTYPE_UINT32, Field.CPPTYPE_UINT64):
        lowest = 0
    return min(max(random.choice(WHOLE), lowest), highest)
