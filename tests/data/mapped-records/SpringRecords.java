package records;

// Writes tests/data/mapped-records/spring.json: records as an application with Spring Cloud Stream's Kafka binder sends
// them, read back from the broker. Run by scripts/mapped-records.

import java.net.URI;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.WebApplicationType;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.cloud.function.cloudevent.CloudEventMessageBuilder;
import org.springframework.cloud.stream.function.StreamBridge;
import org.springframework.kafka.support.KafkaHeaders;
import org.springframework.messaging.Message;
import org.springframework.messaging.support.MessageBuilder;
import org.springframework.util.MimeType;
import org.springframework.util.MimeTypeUtils;

@SpringBootApplication
public class SpringRecords {
  record Order(String id, double total, Instant placed) {}

  static final UUID ID = UUID.fromString("f0b5b5d4-2c0d-4c8e-9d3b-4d6f5b1f0a01");
  static final Instant TIME = Instant.parse("2026-07-01T12:00:00.25Z");
  static final List<String> names = new ArrayList<>();

  static void send(StreamBridge bridge, String name, Message<?> message, MimeType type) {
    names.add(name);
    if (!bridge.send("orders", message, type)) throw new IllegalStateException(name);
  }

  public static void main(String[] arguments) throws Exception {
    SpringApplication application = new SpringApplication(SpringRecords.class);
    application.setWebApplicationType(WebApplicationType.NONE);
    application.setDefaultProperties(Map.of("spring.cloud.stream.kafka.binder.brokers", arguments[0],
        "logging.level.root", "ERROR", "spring.main.banner-mode", "off"));
    Order order = new Order("order-42", 19.90, TIME);
    MimeType json = MimeTypeUtils.APPLICATION_JSON;
    try (var context = application.run()) {
      StreamBridge bridge = context.getBean(StreamBridge.class);
      send(bridge, "headers of an application",
          MessageBuilder.withPayload(order).setHeader("eventId", ID.toString())
              .setHeader("eventType", "order.created").setHeader("eventTime", TIME)
              .setHeader(KafkaHeaders.KEY, "order-42".getBytes(StandardCharsets.UTF_8)).build(), json);
      send(bridge, "an id that is no string, in quotation marks",
          MessageBuilder.withPayload(order).setHeader("eventId", ID)
              .setHeader("eventType", "order.created").build(), json);
      send(bridge, "a string as payload",
          MessageBuilder.withPayload("{\"id\": 42, \"total\": 19.90}").setHeader("eventId", 7)
              .setHeader("eventType", "order.created").build(), json);
      send(bridge, "text", MessageBuilder.withPayload("für Zoë").setHeader("eventId", "e-1")
          .setHeader("eventType", "note.written").setHeader("contentType", "text/plain").build(),
          MimeTypeUtils.TEXT_PLAIN);
      send(bridge, "a CloudEvent",
          CloudEventMessageBuilder.withData(order).setId(ID.toString()).setType("order.created")
              .setSource(URI.create("/shop")).setSubject("order-42").build(), json);
      send(bridge, "neither id nor type", MessageBuilder.withPayload(order).build(), json);
    }
    List<String> out = new ArrayList<>();
    Map<String, Object> reading = Map.of("bootstrap.servers", arguments[0], "group.id", "records",
        "auto.offset.reset", "earliest");
    try (var consumer = new KafkaConsumer<>(reading, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
      consumer.subscribe(List.of("orders"));
      while (out.size() < names.size()) {
        for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
          StringBuilder line = new StringBuilder("  {\"name\": " + quoted(names.get(out.size()))
              + ", \"topic\": " + quoted(record.topic()) + ", \"key\": " + quoted(record.key())
              + ",\n    \"headers\": [");
          String separator = "";
          for (var header : record.headers()) {
            line.append(separator).append("[").append(quoted(header.key())).append(", ")
                .append(quoted(header.value())).append("]");
            separator = ", ";
          }
          out.add(line + "],\n    \"value\": " + quoted(record.value()) + "}");
        }
      }
    }
    Files.writeString(Path.of(arguments[1]), "[\n" + String.join(",\n", out) + "\n]\n");
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
}
