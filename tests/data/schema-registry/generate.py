#!/usr/bin/env python3
"""Writes records.json: values made by Confluent's own serializers for Python, and what a registry returned for their schemas.

The tests read these values, which no code of hookstream has written. Run it again only to add cases:

    python3 -m venv venv && venv/bin/pip install -r requirements.txt
    scripts/schema-registry run     # prints the address, http://127.0.0.1:PORT/apis/ccompat/v7
    venv/bin/python generate.py ADDRESS > records.json

Each record has: `name`, `topic`, `id` (of its schema at that registry), `value` and `header` (the header
__value_schema_id, if any) in base64, and `json`, the value as JSON by the rules that hookstream documents, made from the
objects in Python (Protobuf: by Google's json_format). `responses` are the registry's, by path. Records with a GUID are
made with the client's own mock registry, since the registry has none.
"""

import base64
import datetime
import decimal
import json
import pathlib
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import uuid

here = pathlib.Path(__file__).resolve().parent
generated = tempfile.mkdtemp()
subprocess.run(
    [sys.executable, "-m", "grpc_tools.protoc", f"-I{here}/protos", f"--python_out={generated}", "common.proto", "order.proto"],
    check=True,
)
sys.path.insert(0, generated)

import common_pb2  # noqa: E402
import order_pb2  # noqa: E402
from confluent_kafka.schema_registry import (  # noqa: E402
    Schema, SchemaReference, SchemaRegistryClient, header_schema_id_serializer,
)
from confluent_kafka.schema_registry.avro import AvroSerializer  # noqa: E402
from confluent_kafka.schema_registry.json_schema import JSONSerializer  # noqa: E402
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer  # noqa: E402
from confluent_kafka.serialization import MessageField, SerializationContext  # noqa: E402
from google.protobuf import json_format  # noqa: E402

address = sys.argv[1].rstrip("/")
registry = SchemaRegistryClient({"url": address})
mock = SchemaRegistryClient.new_client({"url": "mock://"})
records, responses = [], {}


def fetch(path):
    """Keeps what the registry returns for a schema and for those that it refers to."""
    if path in responses:
        return
    with urllib.request.urlopen(address + path) as response:
        responses[path] = json.load(response)
    for one in responses[path].get("references") or []:
        subject = urllib.parse.quote(one["subject"], safe="")
        fetch(f"/subjects/{subject}/versions/{one['version']}?deleted=true")


def add(name, serializer, value, expected):
    context = SerializationContext(f"{name}-topic", MessageField.VALUE, headers=[])
    written = serializer(value, context)
    header = dict(context.headers).get("__value_schema_id")
    record = {"name": name, "topic": f"{name}-topic"}
    if header:
        guid = str(uuid.UUID(bytes=header[1:17]))
        record["id"] = guid
        found = mock.get_schema_by_guid(guid)
        answer = {"schema": found.schema_str, "schemaType": found.schema_type}
        responses[f"/schemas/guids/{guid}"] = answer
        record["header"] = base64.b64encode(header).decode()
    else:
        record["id"] = int.from_bytes(written[1:5], "big")
        fetch(f"/schemas/ids/{record['id']}")
    record["value"] = base64.b64encode(written).decode()
    record["json"] = expected
    records.append(record)


# ---- Avro ----

order = {
    "type": "record", "name": "Event", "namespace": "acme.orders",
    "doc": "Fields are not in alphabetical order.",
    "fields": [
        {"name": "type", "type": "string"},
        {"name": "id", "type": "string"},
        {"name": "time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "subject", "type": ["null", "string"], "default": None},
        {"name": "data", "type": {"type": "record", "name": "Order", "aliases": ["Purchase"], "fields": [
            {"name": "total", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
            {"name": "refund", "type": {"type": "fixed", "name": "Refund", "size": 8}},
            {"name": "fee", "type": {"type": "fixed", "name": "Fee", "size": 4, "logicalType": "decimal", "precision": 6, "scale": 3}},
            {"name": "largest", "type": "long"},
            {"name": "count", "type": "int"},
            {"name": "ratio", "type": "float"},
            {"name": "share", "type": "double"},
            {"name": "not_a_number", "type": "double"},
            {"name": "paid", "type": "boolean"},
            {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["CREATED", "PAID"], "default": "CREATED"}},
            {"name": "raw", "type": "bytes"},
            {"name": "tags", "type": {"type": "array", "items": "string"}},
            {"name": "none", "type": {"type": "array", "items": "long"}},
            {"name": "attributes", "type": {"type": "map", "values": ["null", "long", "string"]}},
            {"name": "states", "type": {"type": "array", "items": "State"}},
            {"name": "address", "type": ["null", {"type": "record", "name": "Address", "namespace": "acme", "fields": [
                {"name": "street", "type": "string"}, {"name": "country", "type": "string", "default": "SE"}]}]},
            {"name": "billing", "type": ["acme.Address", "null"]},
            {"name": "previous", "type": ["null", "Order"], "default": None},
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {"name": "at", "type": {"type": "long", "logicalType": "time-micros"}},
            {"name": "early", "type": {"type": "int", "logicalType": "time-millis"}},
            {"name": "seen", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "before_1970", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "local", "type": {"type": "long", "logicalType": "local-timestamp-millis"}},
            {"name": "reference", "type": {"type": "string", "logicalType": "uuid"}},
            {"name": "unknown", "type": {"type": "long", "logicalType": "of-ours"}},
            {"name": "text", "type": "string"},
        ]}},
    ],
}
utc = datetime.timezone.utc
data = {
    "total": decimal.Decimal("1234567.50"), "refund": bytes(range(8)), "fee": decimal.Decimal("-0.125"),
    "largest": 2**63 - 1, "count": -(2**31), "ratio": 1.1, "share": 0.1, "not_a_number": float("nan"), "paid": True,
    "state": "PAID", "raw": b"\x00\xff\x10", "tags": ["a", "\u00e4\n\"quoted\""], "none": [],
    "attributes": {"z": 1, "a": "text", "m": None}, "states": ["CREATED", "PAID"],
    "address": {"street": "Storgatan 1", "country": "SE"}, "billing": None, "previous": None,
    "day": datetime.date(2026, 7, 1), "at": datetime.time(12, 0, 0, 250001), "early": datetime.time(0, 0, 1),
    "seen": datetime.datetime(2026, 7, 1, 12, 0, 0, 250001, utc),
    "before_1970": datetime.datetime(1969, 12, 31, 23, 59, 59, 999000, utc),
    "local": datetime.datetime(2026, 7, 1, 12, 0, 0, 250000),
    "reference": uuid.UUID("6f1c2a44-0f0f-4f3a-9b7e-0123456789ab"), "unknown": -1, "text": "",
}
json_data = {
    "total": "1234567.50", "refund": "AAECAwQFBgc=", "fee": "-0.125", "largest": 2**63 - 1, "count": -(2**31),
    "ratio": 1.1, "share": 0.1, "not_a_number": "NaN", "paid": True, "state": "PAID", "raw": "AP8Q",
    "tags": ["a", "\u00e4\n\"quoted\""], "none": [], "attributes": {"z": 1, "a": "text", "m": None},
    "states": ["CREATED", "PAID"], "address": {"street": "Storgatan 1", "country": "SE"}, "billing": None,
    "previous": None, "day": "2026-07-01", "at": "12:00:00.250001", "early": "00:00:01.000",
    "seen": "2026-07-01T12:00:00.250001Z", "before_1970": "1969-12-31T23:59:59.999Z",
    "local": "2026-07-01T12:00:00.250", "reference": "6f1c2a44-0f0f-4f3a-9b7e-0123456789ab", "unknown": -1, "text": "",
}
first = dict(data, count=1, previous=data)
event = {"type": "order.created", "id": "avro-1", "time": datetime.datetime(2026, 7, 1, 12, 0, 0, 250000, utc), "subject": None, "data": first}
json_event = {"type": "order.created", "id": "avro-1", "time": "2026-07-01T12:00:00.250Z", "subject": None,
              "data": dict(json_data, count=1, previous=json_data)}
avro = json.dumps(order)
add("avro", AvroSerializer(registry, avro), event, json_event)
in_header = {"schema.id.serializer": header_schema_id_serializer}
add("avro-guid", AvroSerializer(mock, avro, conf=in_header), dict(event, id="avro-guid-1"), dict(json_event, id="avro-guid-1"))

item = {"type": "record", "name": "Item", "namespace": "acme", "fields": [{"name": "sku", "type": "string"}]}
basket = {"type": "record", "name": "Basket", "namespace": "acme", "fields": [
    {"name": "items", "type": {"type": "array", "items": "acme.Item"}}, {"name": "gift", "type": ["null", "Item"]}]}
outer = {"type": "record", "name": "Event", "fields": [
    {"name": "id", "type": "string"}, {"name": "type", "type": "string"}, {"name": "data", "type": "acme.Basket"}]}
registry.register_schema("item-value", Schema(json.dumps(item), "AVRO"))
to_item = [SchemaReference("acme.Item", "item-value", 1)]
registry.register_schema("basket/value", Schema(json.dumps(basket), "AVRO", to_item))
to_basket = [SchemaReference("acme.Basket", "basket/value", 1)]
value = {"id": "avro-2", "type": "basket.filled", "data": {"items": [{"sku": "b"}, {"sku": "a"}], "gift": {"sku": "c"}}}
add("avro-references", AvroSerializer(registry, Schema(json.dumps(outer), "AVRO", to_basket)), value, value)

# ---- JSON Schema ----

shape = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Event", "type": "object",
         "properties": {"id": {"type": "string"}, "type": {"type": "string"}, "data": {"type": "object"}}}
value = {"type": "order.created", "id": "json-1", "data": {"total": 1.5, "b": 1, "a": 2}}
add("json", JSONSerializer(json.dumps(shape), registry), value, value)
value = dict(value, id="json-guid-1")
add("json-guid", JSONSerializer(json.dumps(shape), mock, conf=in_header), value, value)

# ---- Protobuf ----


def proto(identity):
    one = order_pb2.Event(id=identity, type="order.created")
    one.time.FromJsonString("2026-07-01T12:00:00.250Z")
    of = one.data
    of.total_cents, of.largest, of.count, of.ratio, of.share = 2**53 + 1, 2**64 - 1, -7, 1.1, 0.1
    of.not_a_number, of.paid, of.state, of.raw = float("-inf"), True, order_pb2.Event.PAID, b"\x00\xff\x10"
    of.tags.extend(["a", "\u00e4\n"])
    for key in ["z", "a", "m"]:
        of.attributes[key] = ord(key)
    of.by_number[10].country = "SE"
    of.by_number[-2].country = "NO"
    of.address.street_name, of.address.country = "Storgatan 1", "SE"
    of.set_to_zero = 0
    of.took.FromJsonString("-1.500s")
    of.wrapped.value = -5
    of.free.update({"z": 1, "a": [True, None, "x"], "m": {"n": 1.5}})
    of.mask.FromJsonString("totalCents,address.streetName")
    of.any.Pack(common_pb2.Address(country="DK"))
    of.any_time.Pack(one.time)
    of.renamed, of.voucher, of.negative, of.fixed = "x", 9, -3, 4
    of.values.add().null_value = 0
    of.values.add().number_value = 2
    of.previous.count = 1
    return one


def proto_json(message):
    return json.loads(json_format.MessageToJson(message, always_print_fields_with_no_presence=True))


one = proto("proto-1")
add("protobuf", ProtobufSerializer(order_pb2.Event, registry), one, proto_json(one))
nested = proto("unused").data
add("protobuf-nested", ProtobufSerializer(order_pb2.Event.Order, registry), nested, proto_json(nested))
plain = common_pb2.Address(street_name="Storgatan 1")
add("protobuf-first", ProtobufSerializer(common_pb2.Address, registry), plain, proto_json(plain))
plain = common_pb2.Address(country="SE")
add("protobuf-guid", ProtobufSerializer(common_pb2.Address, mock, conf=in_header), plain, proto_json(plain))

json.dump({"records": records, "responses": responses}, sys.stdout, indent=1, ensure_ascii=False, sort_keys=False)
print()
