"""The requests that the store sends, put together. Pure.

Parts are set in their place where a write has them: protocol buffers copy what a constructor is given by writing it out
and reading it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.cloud.firestore_v1.types import firestore, query, write

from celery_statemanager.stores.firestore.values import encode, fill_fields

Write = write.Write.pb()
_Query = query.StructuredQuery.pb()
_REQUEST_TIME = int(write.DocumentTransform.FieldTransform.ServerValue.REQUEST_TIME)

_OPERATORS = {"==": 5, "<": 1, "<=": 2, ">": 3, ">=": 4}
Filter = tuple[str, str, Any]


def overwrite(name: str, fields: Mapping[str, Any]) -> Any:
    """Write a document whole, whatever was there."""
    made = Write()
    made.update.name = name
    fill_fields(made.update, fields)
    return made


def put(name: str, fields: Mapping[str, Any], stamp: Any, server_times: Iterable[str] = ()) -> Any:
    """Write a document whole, if it is still as of ``stamp``, or is not there.

    Args:
        server_times: fields that the server sets to its time; the same time in all writes of a commit.
    """
    made = overwrite(name, fields)
    require(made, stamp)
    for path in server_times:
        _set_to_server_time(made, path)
    return made


def add(name: str, fields: Mapping[str, Any], amounts: Mapping[str, int]) -> Any:
    """Set some fields of a document and add to others, whether it is there or not."""
    made = overwrite(name, fields)
    made.update_mask.field_paths.extend(fields)
    for path, amount in amounts.items():
        transform = made.update_transforms.add(field_path=path)
        transform.increment.integer_value = amount
    return made


def touch(name: str, fields: Mapping[str, Any], stamp: Any = None, *, without: Iterable[str] = ()) -> Any:
    """Set some fields of a document that must be there and, if ``stamp`` is given, be as of it.

    Args:
        without: fields to remove.
    """
    made = overwrite(name, fields)
    if stamp is None:
        made.current_document.exists = True
    else:
        require(made, stamp)
    made.update_mask.SetInParent()
    made.update_mask.field_paths.extend([*fields, *without])
    return made


def touch_time(name: str, path: str) -> Any:
    """Set one field of a document that must be there to the server's time."""
    made = touch(name, {})
    _set_to_server_time(made, path)
    return made


def stamp_time(name: str, fields: Mapping[str, Any], path: str) -> Any:
    """Write a document whole, with the server's time in one field, whatever was there."""
    made = overwrite(name, fields)
    _set_to_server_time(made, path)
    return made


def delete(name: str, stamp: Any = None) -> Any:
    """Delete a document, if it is still as of ``stamp`` where that is given."""
    made = Write(delete=name)
    if stamp is not None:
        require(made, stamp)
    return made


def require(made: Any, stamp: Any) -> None:
    """Let a write hold only if its document is as of an update time, or is not there."""
    if stamp is None:
        made.current_document.exists = False
    else:
        made.current_document.update_time.CopyFrom(stamp)


def _set_to_server_time(made: Any, path: str) -> None:
    transform = made.update_transforms.add()
    transform.field_path = path
    transform.set_to_server_value = _REQUEST_TIME


def commit(database: str, writes: Sequence[Any]) -> Any:
    """Do all of it or nothing."""
    made = firestore.CommitRequest.pb()(database=database)
    for each in writes:
        made.writes.add().CopyFrom(each)
    return made


def get(database: str, names: Iterable[str], *, at: Any = None) -> Any:
    """Read documents by name, as of one moment."""
    made = firestore.BatchGetDocumentsRequest.pb()(database=database, documents=list(names))
    if at is not None:
        made.read_time.CopyFrom(at)
    return made


def select(
    collection: str,
    *filters: Filter,
    order: Sequence[str] = (),
    limit: int = 0,
    fields: Sequence[str] | None = None,
    after: Sequence[Any] = (),
    everywhere: bool = False,
) -> Any:
    """Give a query.

    Args:
        fields: read these alone; ``()`` for the names only.
        after: start behind the document with these values of ``order``.
        everywhere: in all collections of the name, not only the parent's.
    """
    made = _Query()
    source = made.from_.add()
    source.collection_id = collection
    source.all_descendants = everywhere
    for path, operator, value in filters:
        one = made.where.composite_filter.filters.add().field_filter
        one.field.field_path = path
        one.op = _OPERATORS[operator]
        one.value.CopyFrom(_reference(value))
    if filters:
        made.where.composite_filter.op = 1
    for path in order:
        term = made.order_by.add()
        term.field.field_path = path
        term.direction = 1
    if fields is not None:
        made.select.SetInParent()
        for path in fields or ("__name__",):
            made.select.fields.add().field_path = path
    if after:
        made.start_at.values.extend(_reference(value) for value in after)
    if limit:
        made.limit.value = limit
    return made


class Reference(str):
    """The name of a document, as a value."""

    __slots__ = ()


def _reference(value: Any) -> Any:
    if isinstance(value, Reference):
        made = encode("")
        made.reference_value = str(value)
        return made
    return encode(value)


def run(parent: str, structured: Any, *, at: Any = None) -> Any:
    """Run a query."""
    made = firestore.RunQueryRequest.pb()(parent=parent, structured_query=structured)
    if at is not None:
        made.read_time.CopyFrom(at)
    return made


def aggregate(parent: str, structured: Any, sums: Iterable[str] = (), *, count: bool = False, at: Any = None) -> Any:
    """Sum fields over what a query finds, or count it, without reading it."""
    made = firestore.RunAggregationQueryRequest.pb()(parent=parent)
    made.structured_aggregation_query.structured_query.CopyFrom(structured)
    for path in sums:
        one = made.structured_aggregation_query.aggregations.add(alias=path)
        one.sum.field.field_path = path
    if count:
        made.structured_aggregation_query.aggregations.add(alias="count").count.SetInParent()
    if at is not None:
        made.read_time.CopyFrom(at)
    return made


def listen(database: str, target: int, *, query_in: tuple[str, Any] | None, names: Iterable[str], since: Any) -> Any:
    """Ask a stream for the changes of a query's or of some documents since a moment."""
    made = firestore.ListenRequest.pb()(database=database)
    made.add_target.target_id = target
    if query_in is not None:
        made.add_target.query.parent, structured = query_in
        made.add_target.query.structured_query.CopyFrom(structured)
    else:
        made.add_target.documents.documents.extend(names)
    made.add_target.read_time.CopyFrom(since)
    return made
