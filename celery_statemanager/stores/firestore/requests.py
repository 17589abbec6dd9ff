"""Builders of the requests that the store sends. Pure.

The parts of a write are filled in place, because a protocol buffer copies a constructor's arguments by serializing
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.cloud.firestore_v1.types import firestore, query, write

from celery_statemanager.stores.firestore.values import encode, fill_fields

Filter = tuple[str, str, Any]
"""A field, an operator and a value."""

_WriteMessage = write.Write.pb()
_QueryMessage = query.StructuredQuery.pb()
_REQUEST_TIME = int(write.DocumentTransform.FieldTransform.ServerValue.REQUEST_TIME)
_OPERATORS = {"==": 5, "<": 1, "<=": 2, ">": 3, ">=": 4}


class Reference(str):
    """The name of a document, used as a value."""

    __slots__ = ()


def overwrite(name: str, fields: Mapping[str, Any]) -> Any:
    """Build a write of a whole document without a precondition."""
    message = _WriteMessage()
    message.update.name = name
    fill_fields(message.update, fields)
    return message


def put(name: str, fields: Mapping[str, Any], update_time: Any, server_times: Iterable[str] = ()) -> Any:
    """Build a write of a whole document that must have this update time or, with None, must not exist.

    Args:
        server_times: fields that the server sets to its time, which is the same in all writes of a commit.
    """
    message = overwrite(name, fields)
    require(message, update_time)
    for path in server_times:
        _set_to_server_time(message, path)
    return message


def add(name: str, fields: Mapping[str, Any], amounts: Mapping[str, int]) -> Any:
    """Build a write that sets some fields of a document and increments others. The document need not exist."""
    message = overwrite(name, fields)
    message.update_mask.field_paths.extend(fields)
    for path, amount in amounts.items():
        transform = message.update_transforms.add(field_path=path)
        transform.increment.integer_value = amount
    return message


def touch(name: str, fields: Mapping[str, Any], update_time: Any = None, *, without: Iterable[str] = ()) -> Any:
    """Build a write of some fields of a document that must exist and, if ``update_time`` is given, must have it.

    Args:
        without: fields to remove.
    """
    message = overwrite(name, fields)
    if update_time is None:
        message.current_document.exists = True
    else:
        require(message, update_time)
    message.update_mask.SetInParent()
    message.update_mask.field_paths.extend([*fields, *without])
    return message


def touch_time(name: str, path: str) -> Any:
    """Build a write that sets one field of an existing document to the server's time."""
    message = touch(name, {})
    _set_to_server_time(message, path)
    return message


def stamp_time(name: str, fields: Mapping[str, Any], path: str) -> Any:
    """Build a write of a whole document with the server's time in one field, without a precondition."""
    message = overwrite(name, fields)
    _set_to_server_time(message, path)
    return message


def delete(name: str, update_time: Any = None, *, must_exist: bool = False) -> Any:
    """Build a deletion of a document that must have the update time, if one is given, or must exist."""
    message = _WriteMessage(delete=name)
    if update_time is not None:
        require(message, update_time)
    elif must_exist:
        message.current_document.exists = True
    return message


def require(message: Any, update_time: Any) -> None:
    """Add the precondition that the document has this update time or, with None, does not exist."""
    if update_time is None:
        message.current_document.exists = False
    else:
        message.current_document.update_time.CopyFrom(update_time)


def _set_to_server_time(message: Any, path: str) -> None:
    transform = message.update_transforms.add()
    transform.field_path = path
    transform.set_to_server_value = _REQUEST_TIME


def commit(database: str, writes: Sequence[Any]) -> Any:
    """Build a commit, which applies all writes or none."""
    message = firestore.CommitRequest.pb()(database=database)
    for each in writes:
        message.writes.add().CopyFrom(each)
    return message


def get(database: str, names: Iterable[str], *, at: Any = None) -> Any:
    """Build a read of documents by name, all as of the same time."""
    message = firestore.BatchGetDocumentsRequest.pb()(database=database, documents=list(names))
    if at is not None:
        message.read_time.CopyFrom(at)
    return message


def select(
    collection: str,
    *filters: Filter,
    order: Sequence[str] = (),
    limit: int = 0,
    fields: Sequence[str] | None = None,
    after: Sequence[Any] = (),
    everywhere: bool = False,
) -> Any:
    """Build a query.

    Args:
        order: the fields by which to order, ``-`` before a descending one.
        fields: the fields to read; ``()`` reads only the names, None all fields.
        after: start behind the document with these values of ``order``.
        everywhere: query all collections of this name below the parent, not only the parent's own. Without a name, all
            documents below the parent.
    """
    message = _QueryMessage()
    source = message.from_.add()
    source.collection_id = collection
    source.all_descendants = everywhere
    for path, operator, value in filters:
        term = message.where.composite_filter.filters.add().field_filter
        term.field.field_path = path
        term.op = _OPERATORS[operator]
        term.value.CopyFrom(_encode(value))
    if filters:
        message.where.composite_filter.op = 1
    for path in order:
        ordering = message.order_by.add()
        ordering.field.field_path = path.removeprefix("-")
        ordering.direction = 2 if path.startswith("-") else 1
    if fields is not None:
        message.select.SetInParent()
        for path in fields or ("__name__",):
            message.select.fields.add().field_path = path
    if after:
        message.start_at.values.extend(_encode(value) for value in after)
    if limit:
        message.limit.value = limit
    return message


def _encode(value: Any) -> Any:
    if isinstance(value, Reference):
        message = encode("")
        message.reference_value = str(value)
        return message
    return encode(value)


def run(parent: str, structured: Any, *, at: Any = None) -> Any:
    """Build the request that runs a query."""
    message = firestore.RunQueryRequest.pb()(parent=parent, structured_query=structured)
    if at is not None:
        message.read_time.CopyFrom(at)
    return message


def aggregate(parent: str, structured: Any, sums: Iterable[str] = (), *, count: bool = False, at: Any = None) -> Any:
    """Build a request that sums fields of a query's documents, or counts them, without reading them."""
    message = firestore.RunAggregationQueryRequest.pb()(parent=parent)
    message.structured_aggregation_query.structured_query.CopyFrom(structured)
    for path in sums:
        aggregation = message.structured_aggregation_query.aggregations.add(alias=path)
        aggregation.sum.field.field_path = path
    if count:
        message.structured_aggregation_query.aggregations.add(alias="count").count.SetInParent()
    if at is not None:
        message.read_time.CopyFrom(at)
    return message


def listen(database: str, target: int, *, query_in: tuple[str, Any] | None, names: Iterable[str], since: Any) -> Any:
    """Build a request for the changes since a time, of a query's documents or of named documents.

    Args:
        query_in: the parent and the query.
    """
    message = firestore.ListenRequest.pb()(database=database)
    message.add_target.target_id = target
    if query_in is not None:
        message.add_target.query.parent, structured = query_in
        message.add_target.query.structured_query.CopyFrom(structured)
    else:
        message.add_target.documents.documents.extend(names)
    message.add_target.read_time.CopyFrom(since)
    return message
