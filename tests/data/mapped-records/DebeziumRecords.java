// Writes tests/data/mapped-records/debezium.json: records as Debezium's outbox router (EventRouter) and its
// CloudEventsConverter make them, with the converters that people use. Run by scripts/mapped-records.

import io.debezium.converters.CloudEventsConverter;
import io.debezium.data.Envelope;
import io.debezium.data.Json;
import io.debezium.data.Uuid;
import io.debezium.time.MicroTimestamp;
import io.debezium.time.ZonedTimestamp;
import io.debezium.transforms.outbox.EventRouter;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Instant;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.connect.converters.ByteArrayConverter;
import org.apache.kafka.connect.data.Schema;
import org.apache.kafka.connect.data.SchemaBuilder;
import org.apache.kafka.connect.data.Struct;
import org.apache.kafka.connect.json.JsonConverter;
import org.apache.kafka.connect.source.SourceRecord;
import org.apache.kafka.connect.storage.Converter;
import org.apache.kafka.connect.storage.HeaderConverter;
import org.apache.kafka.connect.storage.SimpleHeaderConverter;
import org.apache.kafka.connect.storage.StringConverter;
import org.apache.kafka.connect.transforms.HeaderFrom;
import org.apache.kafka.connect.transforms.Transformation;

public class DebeziumRecords {
  static final String ID = "f0b5b5d4-2c0d-4c8e-9d3b-4d6f5b1f0a01";
  static final String PAYLOAD = "{\"id\": 42, \"total\": 19.90, \"note\": \"für \\\"Zoë\\\"\"}";

  static final Schema SOURCE =
      SchemaBuilder.struct().name("io.debezium.connector.postgresql.Source")
          .field("version", Schema.STRING_SCHEMA).field("connector", Schema.STRING_SCHEMA)
          .field("name", Schema.STRING_SCHEMA).field("ts_ms", Schema.INT64_SCHEMA)
          .field("snapshot", Schema.OPTIONAL_STRING_SCHEMA).field("db", Schema.STRING_SCHEMA)
          .field("sequence", Schema.OPTIONAL_STRING_SCHEMA).field("schema", Schema.STRING_SCHEMA)
          .field("table", Schema.STRING_SCHEMA).field("txId", Schema.OPTIONAL_INT64_SCHEMA)
          .field("lsn", Schema.OPTIONAL_INT64_SCHEMA).field("xmin", Schema.OPTIONAL_INT64_SCHEMA).build();

  static final List<String> out = new ArrayList<>();

  /** An inserted row of the outbox table, as the connector reads it. */
  static SourceRecord inserted(Schema payloadSchema, Object payload) {
    Schema row = SchemaBuilder.struct().optional().name("shop.public.outbox.Value")
        .field("id", Uuid.schema()).field("aggregatetype", Schema.STRING_SCHEMA)
        .field("aggregateid", Schema.STRING_SCHEMA).field("type", Schema.STRING_SCHEMA)
        .field("payload", payloadSchema).field("occurred_at", ZonedTimestamp.schema())
        .field("created", MicroTimestamp.schema()).build();
    Struct after = new Struct(row).put("id", ID).put("aggregatetype", "order")
        .put("aggregateid", "order-42").put("type", "order.created").put("payload", payload)
        .put("occurred_at", "2026-07-01T12:00:00.25Z").put("created", 1782907200250000L);
    Struct source = new Struct(SOURCE).put("version", "3.6.1.Final").put("connector", "postgresql")
        .put("name", "shop").put("ts_ms", 1782907200250L).put("snapshot", "false").put("db", "shop")
        .put("sequence", "[null,\"23456789\"]").put("schema", "public").put("table", "outbox")
        .put("txId", 733L).put("lsn", 23456789L);
    Envelope envelope = Envelope.defineSchema().withName("shop.public.outbox.Envelope")
        .withRecord(row).withSource(SOURCE).build();
    Struct value = envelope.create(after, source, Instant.ofEpochMilli(1782907200500L));
    Schema key = SchemaBuilder.struct().name("shop.public.outbox.Key").field("id", Uuid.schema()).build();
    return new SourceRecord(Map.of(), Map.of(), "shop.public.outbox", key, new Struct(key).put("id", ID),
        envelope.schema(), value);
  }

  static SourceRecord inserted(String payload) {
    return inserted(Json.builder().optional().build(), payload);
  }

  static SourceRecord routed(SourceRecord record, String... options) {
    try (EventRouter<SourceRecord> router = new EventRouter<>()) {
      router.configure(map(options));
      return router.apply(record);
    }
  }

  /** What Debezium's documentation puts before the router where the converter is CloudEventsConverter. */
  static SourceRecord withMetadataHeaders(SourceRecord record) {
    try (Transformation<SourceRecord> headers = new HeaderFrom.Value<>()) {
      headers.configure(Map.of("fields", "source,op,transaction", "headers", "source,op,transaction",
          "operation", "copy"));
      return headers.apply(record);
    }
  }

  static Map<String, String> map(String... pairs) {
    Map<String, String> map = new HashMap<>();
    for (int i = 0; i < pairs.length; i += 2) map.put(pairs[i], pairs[i + 1]);
    return map;
  }

  static Converter json(boolean schemas, boolean isKey) {
    JsonConverter converter = new JsonConverter();
    converter.configure(Map.of("schemas.enable", schemas), isKey);
    return converter;
  }

  static Converter string(boolean isKey) {
    StringConverter converter = new StringConverter();
    converter.configure(Map.of(), isKey);
    return converter;
  }

  static Converter bytes() {
    ByteArrayConverter converter = new ByteArrayConverter();
    converter.configure(Map.of(), false);
    return converter;
  }

  static HeaderConverter jsonHeaders(boolean schemas) {
    JsonConverter converter = new JsonConverter();
    converter.configure(Map.of("schemas.enable", schemas, "converter.type", "header"));
    return converter;
  }

  static Converter cloudevents(String... options) {
    CloudEventsConverter converter = new CloudEventsConverter();
    Map<String, String> all = map(options);
    all.putIfAbsent("serializer.type", "json");
    all.putIfAbsent("data.serializer.type", "json");
    converter.configure(all, false);
    return converter;
  }

  /** Adds the record as Connect's worker sends it with these converters. */
  static void add(String name, SourceRecord record, Converter key, Converter value, HeaderConverter headers) {
    RecordHeaders converted = new RecordHeaders();
    record.headers().forEach(header -> converted.add(header.key(),
        headers.fromConnectHeader(record.topic(), header.key(), header.schema(), header.value())));
    byte[] keyBytes = key.fromConnectData(record.topic(), converted, record.keySchema(), record.key());
    byte[] valueBytes = value.fromConnectData(record.topic(), converted, record.valueSchema(), record.value());
    StringBuilder line = new StringBuilder("  {\"name\": " + quoted(name) + ", \"topic\": "
        + quoted(record.topic()) + ", \"key\": " + quoted(keyBytes) + ",\n    \"headers\": [");
    String separator = "";
    for (var header : converted) {
      line.append(separator).append("[").append(quoted(header.key())).append(", ")
          .append(quoted(header.value())).append("]");
      separator = ", ";
    }
    out.add(line + "],\n    \"value\": " + quoted(valueBytes) + "}");
  }

  static String quoted(byte[] bytes) {
    return bytes == null ? "null" : quoted(new String(bytes, StandardCharsets.UTF_8));
  }

  static String quoted(String text) {
    StringBuilder json = new StringBuilder("\"");
    for (char letter : text.toCharArray()) {
      if (letter == '"' || letter == '\\') json.append('\\').append(letter);
      else if (letter < ' ') json.append(String.format("\\u%04x", (int) letter));
      else json.append(letter);
    }
    return json.append('"').toString();
  }

  public static void main(String[] arguments) throws Exception {
    HeaderConverter simple = new SimpleHeaderConverter();
    String placement = "table.fields.additional.placement";

    add("outbox, JSON without schemas", routed(inserted(PAYLOAD)), json(false, true), json(false, false), simple);
    add("outbox, JSON with schemas", routed(inserted(PAYLOAD)), json(true, true), json(true, false), simple);
    add("outbox, strings", routed(inserted(PAYLOAD)), string(true), string(false), simple);
    add("outbox, bytes", routed(inserted(Schema.BYTES_SCHEMA, PAYLOAD.getBytes(StandardCharsets.UTF_8))),
        string(true), bytes(), simple);
    add("outbox, type and times in headers",
        routed(inserted(PAYLOAD), placement, "type:header:eventType,occurred_at:header:time,created:header:created"),
        string(true), json(false, false), simple);
    add("outbox, type in a header without a name", routed(inserted(PAYLOAD), placement, "type:header"),
        string(true), string(false), simple);
    add("outbox, headers as JSON",
        routed(inserted(PAYLOAD), placement, "type:header:eventType,created:header:created"),
        string(true), string(false), jsonHeaders(false));
    add("outbox, headers as JSON with schemas",
        routed(inserted(PAYLOAD), placement, "type:header:eventType,created:header:created"),
        string(true), string(false), jsonHeaders(true));
    add("outbox, type in the envelope",
        routed(inserted(PAYLOAD), placement, "type:envelope:eventType,occurred_at:envelope:time"),
        json(false, true), json(false, false), simple);
    add("outbox, type in the envelope, with schemas",
        routed(inserted(PAYLOAD), placement, "type:envelope:eventType,occurred_at:envelope:time"),
        json(true, true), json(true, false), simple);
    add("outbox, payload expanded", routed(inserted(PAYLOAD), "table.expand.json.payload", "true"),
        string(true), json(false, false), simple);
    add("outbox, payload expanded, with schemas", routed(inserted(PAYLOAD), "table.expand.json.payload", "true"),
        string(true), json(true, false), simple);
    add("outbox, payload null", routed(inserted(null)), string(true), json(false, false), simple);
    add("outbox, payload null, with schemas", routed(inserted(null)), string(true), json(true, false), simple);
    add("outbox, payload null, strings", routed(inserted(null)), string(true), string(false), simple);
    add("outbox, tombstone for an empty payload",
        routed(inserted(null), "route.tombstone.on.empty.payload", "true"), string(true), json(false, false), simple);

    add("change as a CloudEvent", inserted(PAYLOAD), json(false, true),
        cloudevents("json.schemas.enable", "false"), simple);
    add("change as a CloudEvent, with schemas", inserted(PAYLOAD), json(true, true), cloudevents(), simple);
    // The converter takes no payload that is a string.
    for (String schemas : List.of("false", "true")) {
      SourceRecord record = routed(withMetadataHeaders(inserted(PAYLOAD)), placement, "type:header",
          "table.expand.json.payload", "true");
      add("outbox as a CloudEvent" + (schemas.equals("true") ? ", with schemas" : ""), record, string(true),
          cloudevents("metadata.source", "header", "json.schemas.enable", schemas), jsonHeaders(true));
    }
    Files.writeString(Path.of(arguments[0]), "[\n" + String.join(",\n", out) + "\n]\n");
  }
}
