"""The pydantic models and the Arrow schemas say the same."""

import types
import typing

import pyarrow as pa
import pytest

from celr_ray import schema

PAIRS = [
    (schema.Message, pa.schema(schema.MESSAGE_FIELDS)),
    (schema.Trajectory, schema.TRAJECTORY_SCHEMA),
    (schema.Judgment, schema.JUDGMENT_SCHEMA),
    (schema.PreferencePair, schema.PAIR_SCHEMA),
    (schema.KtoRow, schema.KTO_SCHEMA),
    (schema.TaskSummary, schema.TASK_SCHEMA),
]
SCALARS = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def arrow_of(annotation: object) -> tuple[pa.DataType, bool]:
    """Return the Arrow type that an annotation means, and whether it may be null."""
    if isinstance(annotation, types.UnionType):
        inner = [a for a in typing.get_args(annotation) if a is not type(None)]
        assert len(inner) == 1
        return arrow_of(inner[0])[0], True
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return pa.string(), False
    if origin is list:
        item = typing.get_args(annotation)[0]
        return (schema.MESSAGES if item is schema.Message else pa.list_(arrow_of(item)[0])), False
    return SCALARS[annotation], False


@pytest.mark.parametrize(("model", "arrow"), PAIRS, ids=lambda value: getattr(value, "__name__", ""))
def test_model_and_arrow_schema_agree(model, arrow):
    assert list(model.model_fields) == arrow.names
    for name, field in model.model_fields.items():
        kind, nullable = arrow_of(field.annotation)
        assert arrow.field(name).type == kind, name
        assert arrow.field(name).nullable == nullable, name


def test_required_columns_survive_parquet(tmp_path):
    from celr_ray import storage

    table = schema.TRAJECTORY_SCHEMA.empty_table()
    storage.write_parquet(str(tmp_path / "part.parquet"), table)
    assert storage.read_parquet(str(tmp_path / "part.parquet")).schema == schema.TRAJECTORY_SCHEMA


def test_unknown_fields_are_refused():
    with pytest.raises(ValueError, match="extra"):
        schema.Message(role="user", content="hi", score=1)
