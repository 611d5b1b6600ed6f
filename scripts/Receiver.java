// A receiver to try things with: prints each webhook and answers 200, or 400 below /refuse.
// Run by scripts/receiver, which needs no more than the Java that Kafka needs. It verifies nothing.

import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.concurrent.Executors;

class Receiver {
  private static final List<String> SHOWN =
      List.of("Webhook-id", "Webhook-timestamp", "Webhook-signature", "Hookstream-attempt");

  public static void main(String[] arguments) throws Exception {
    var host = arguments.length > 1 ? arguments[1] : "127.0.0.1";
    var address = new InetSocketAddress(host, Integer.parseInt(arguments[0]));
    var server = HttpServer.create(address, 0);
    server.createContext("/", exchange -> {
      var body = new String(exchange.getRequestBody().readAllBytes(), StandardCharsets.UTF_8);
      var path = exchange.getRequestURI().getPath();
      var status = path.startsWith("/refuse") ? 400 : 200;
      var text = new StringBuilder("POST " + path + " -> " + status + "\n");
      for (var name : SHOWN) {
        var value = exchange.getRequestHeaders().getFirst(name);
        if (value != null) text.append("  ").append(name.toLowerCase()).append(": ").append(value).append("\n");
      }
      System.out.print(text + "  " + body + "\n");
      System.out.flush();
      exchange.sendResponseHeaders(status, -1);
      exchange.close();
    });
    server.setExecutor(Executors.newCachedThreadPool());
    server.start();
    System.err.println("listening on http://" + host + ":" + server.getAddress().getPort());
  }
}
