"""The requests that the store sends, put together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.cloud.firestore_v1.types import common, firestore, query, write

from celery_statemanager.stores.firestore.values import encode, encoded

Write = write.Write.pb()
Precondition = common.Precondition.pb()
_Transform = write.DocumentTransform.FieldTransform.pb()
_Query = query.StructuredQuery.pb()
_REQUEST_TIME = write.DocumentTransform.FieldTransform.ServerValue.REQUEST_TIME

_OPERATORS = {"==": 5, "<": 1, "<=": 2, ">": 3, ">=": 4}
Filter = tuple[str, str, Any]


def put(name: str, fields: Mapping[str, Any], stamp: Any, server_times: Iterable[str] = ()) -> Any:
    """Write a document whole, if it is still as of ``stamp``, or is not there.

    Args:
        server_times: fields that the server sets to its time; the same time in all writes of a commit.
    """
    made = Write(update=encoded(name, fields), current_document=as_of(stamp))
    for path in server_times:
        made.update_transforms.append(_Transform(field_path=path, set_to_server_value=_REQUEST_TIME))
    return made


def add(name: str, fields: Mapping[str, Any], amounts: Mapping[str, int]) -> Any:
    """Set some fields of a document and add to others, whether it is there or not."""
    made = Write(update=encoded(name, fields))
    made.update_mask.field_paths.extend(fields)
    for path, amount in amounts.items():
        made.update_transforms.append(_Transform(field_path=path, increment=encode(amount)))
    return made


def touch(name: str, fields: Mapping[str, Any], stamp: Any = None, *, without: Iterable[str] = ()) -> Any:
    """Set some fields of a document that must be there and, if ``stamp`` is given, be as of it.

    Args:
        without: fields to remove.
    """
    condition = Precondition(exists=True) if stamp is None else as_of(stamp)
    made = Write(update=encoded(name, fields), current_document=condition)
    made.update_mask.SetInParent()
    made.update_mask.field_paths.extend([*fields, *without])
    return made


def touch_time(name: str, path: str) -> Any:
    """Set one field of a document that must be there to the server's time."""
    made = Write(update=encoded(name, {}), current_document=Precondition(exists=True))
    made.update_mask.SetInParent()
    made.update_transforms.append(_Transform(field_path=path, set_to_server_value=_REQUEST_TIME))
    return made


def stamp_time(name: str, fields: Mapping[str, Any], path: str) -> Any:
    """Write a document whole, with the server's time in one field, whatever was there."""
    made = Write(update=encoded(name, fields))
    made.update_transforms.append(_Transform(field_path=path, set_to_server_value=_REQUEST_TIME))
    return made


def delete(name: str, stamp: Any = None) -> Any:
    """Delete a document, if it is still as of ``stamp`` where that is given."""
    return Write(delete=name, current_document=None if stamp is None else as_of(stamp))


def as_of(stamp: Any) -> Any:
    """Give the precondition that a document is as of its update time, or not there."""
    return Precondition(exists=False) if stamp is None else Precondition(update_time=stamp)


def commit(database: str, writes: Sequence[Any]) -> Any:
    """Do all of it or nothing."""
    return firestore.CommitRequest.pb()(database=database, writes=writes)


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
