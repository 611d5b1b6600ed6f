package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// What the Strimzi component says, on a real broker: its users with exactly their permissions, and its topics.

const password = "s3cret"

func program(t *testing.T) string {
	t.Helper()
	path := os.Getenv("PROGRAM_UNDER_TEST")
	if path == "" {
		path = root("target/debug/hookstream")
	}
	if _, err := os.Stat(path); err != nil {
		skip(t, "without target/debug/hookstream, which cargo build makes")
	}
	return path
}

// A broker with an authorizer: what comes over `open` is a superuser, over `guarded` a user of users.yaml.
type broker struct{ open, guarded, log string }

func freePort(t *testing.T) string {
	t.Helper()
	listener := must[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

func startBroker(t *testing.T, users []string) broker {
	t.Helper()
	directory := t.TempDir()
	kafka := func(args ...string) string {
		command := exec.Command(root("scripts/kafka"), append(args, "--dir", directory)...)
		var errors bytes.Buffer
		command.Stderr = &errors
		output, err := command.Output()
		if err != nil {
			t.Fatalf("scripts/kafka %v: %v\n%s", args, err, errors.String())
		}
		return strings.TrimSpace(string(output))
	}
	t.Cleanup(func() { kafka("stop") })
	open := kafka("start")
	kafka("stop")
	// The same broker again, with a second listener that asks who is there, and an authorizer.
	guarded := "127.0.0.1:" + freePort(t)
	file := filepath.Join(directory, "1", "server.properties")
	properties := string(must[[]byte](t)(os.ReadFile(file)))
	properties = strings.ReplaceAll(properties, "listeners=PLAINTEXT://", "listeners=GUARDED://"+guarded+",PLAINTEXT://")
	properties = strings.Replace(properties, "security.protocol.map=", "security.protocol.map=GUARDED:SASL_PLAINTEXT,", 1)
	var login strings.Builder
	for _, user := range users {
		fmt.Fprintf(&login, " user_%s=\"%s\"", user, password)
	}
	properties += "sasl.enabled.mechanisms=PLAIN\n" +
		"listener.name.guarded.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required" + login.String() + ";\n" +
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n" +
		"super.users=User:ANONYMOUS\n"
	if err := os.WriteFile(file, []byte(properties), 0o644); err != nil {
		t.Fatal(err)
	}
	kafka("start")
	return broker{open: open, guarded: guarded, log: filepath.Join(directory, "1", "server.log")}
}

// resourceName is what an ACL is about: the cluster has one name, which Strimzi leaves out.
func resourceName(acl any) string {
	if text(acl, "resource", "type") == "cluster" {
		return "kafka-cluster"
	}
	return text(acl, "resource", "name")
}

// grant creates the permissions of a KafkaUser, as Strimzi's user operator does.
func grant(t *testing.T, client *kgo.Client, user Object) {
	t.Helper()
	request := kmsg.NewPtrCreateACLsRequest()
	for _, acl := range list(user, "spec", "authorization", "acls") {
		for _, operation := range list(acl, "operations") {
			creation := kmsg.NewCreateACLsRequestCreation()
			creation.ResourceType = must[kmsg.ACLResourceType](t)(kmsg.ParseACLResourceType(text(acl, "resource", "type")))
			creation.ResourceName = resourceName(acl)
			creation.ResourcePatternType = kmsg.ACLResourcePatternTypeLiteral
			if text(acl, "resource", "patternType") == "prefix" {
				creation.ResourcePatternType = kmsg.ACLResourcePatternTypePrefixed
			}
			creation.Principal = "User:" + user.name()
			creation.Host = "*"
			creation.Operation = must[kmsg.ACLOperation](t)(kmsg.ParseACLOperation(operation.(string)))
			creation.PermissionType = kmsg.ACLPermissionTypeAllow
			request.Creations = append(request.Creations, creation)
		}
	}
	response := must[*kmsg.CreateACLsResponse](t)(request.RequestWith(context.Background(), client))
	for number, result := range response.Results {
		if result.ErrorCode != 0 {
			t.Fatalf("%s: %+v: error %d", user.name(), request.Creations[number], result.ErrorCode)
		}
	}
}

// revoke takes one permission from a user, and waits until the broker denies it.
func revoke(t *testing.T, client *kgo.Client, user string, resource kmsg.ACLResourceType, name string, operation kmsg.ACLOperation) {
	t.Helper()
	filter := kmsg.NewDeleteACLsRequestFilter()
	filter.ResourceType, filter.ResourceName = resource, &name
	filter.ResourcePatternType = kmsg.ACLResourcePatternTypeAny
	filter.Principal = kmsg.StringPtr("User:" + user)
	filter.Operation = operation
	filter.PermissionType = kmsg.ACLPermissionTypeAllow
	request := kmsg.NewPtrDeleteACLsRequest()
	request.Filters = append(request.Filters, filter)
	response := must[*kmsg.DeleteACLsResponse](t)(request.RequestWith(context.Background(), client))
	if result := response.Results[0]; result.ErrorCode != 0 || len(result.MatchingACLs) != 1 {
		t.Fatalf("%s: %s %s: error %d, %d permissions", user, operation, name, result.ErrorCode, len(result.MatchingACLs))
	}
	describe := kmsg.NewPtrDescribeACLsRequest()
	describe.ResourceType, describe.ResourceName = resource, &name
	describe.ResourcePatternType = kmsg.ACLResourcePatternTypeAny
	describe.Principal, describe.Operation = filter.Principal, operation
	describe.PermissionType = kmsg.ACLPermissionTypeAllow
	until(t, "the permission is gone", func() bool {
		left := must[*kmsg.DescribeACLsResponse](t)(describe.RequestWith(context.Background(), client))
		return len(left.Resources) == 0
	})
}

// logAllowed makes the authorizer log what it allows.
func logAllowed(t *testing.T, client *kgo.Client) {
	t.Helper()
	request := kmsg.NewPtrIncrementalAlterConfigsRequest()
	resource := kmsg.NewIncrementalAlterConfigsRequestResource()
	resource.ResourceType = kmsg.ConfigResourceTypeBrokerLogger
	resource.ResourceName = "1"
	config := kmsg.NewIncrementalAlterConfigsRequestResourceConfig()
	config.Name = "kafka.authorizer.logger"
	config.Value = kmsg.StringPtr("TRACE")
	resource.Configs = append(resource.Configs, config)
	request.Resources = append(request.Resources, resource)
	response := must[*kmsg.IncrementalAlterConfigsResponse](t)(request.RequestWith(context.Background(), client))
	for _, result := range response.Resources {
		if result.ErrorCode != 0 {
			t.Fatalf("%s: error %d: %v", resource.ResourceName, result.ErrorCode, result.ErrorMessage)
		}
	}
}

var allowed = regexp.MustCompile(`Principal = User:(\S+) is Allowed operation = (\S+) from host = \S+ on resource = (\w+):LITERAL:(\S+) for`)

// unused are permissions that no request needed: the users have exactly what they need if there are none.
func unused(t *testing.T, users []Object, log string) []string {
	t.Helper()
	lines := allowed.FindAllStringSubmatch(string(must[[]byte](t)(os.ReadFile(log))), -1)
	if len(lines) == 0 {
		t.Error("the authorizer logs nothing")
	}
	norm := func(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "")) }
	var found []string
	for _, user := range users {
		for _, acl := range list(user, "spec", "authorization", "acls") {
			kind, name, pattern := text(acl, "resource", "type"), resourceName(acl), text(acl, "resource", "patternType")
			for _, operation := range list(acl, "operations") {
				if !slices.ContainsFunc(lines, func(line []string) bool {
					same := line[4] == name || (pattern == "prefix" && strings.HasPrefix(line[4], name))
					return line[1] == user.name() && norm(line[2]) == norm(operation.(string)) && norm(line[3]) == norm(kind) && same
				}) {
					found = append(found, fmt.Sprintf("%s: %s of %s %s", user.name(), operation, kind, name))
				}
			}
		}
	}
	return found
}

// A hookstream that speaks as one of the users.
type speaker struct {
	t       *testing.T
	program string
	broker  broker
}

func (s speaker) command(user string, args ...string) *exec.Cmd {
	args = append(args, "--brokers", s.broker.guarded, "--tiers", "1s", "--retry-schedule", "1s,1s", "--attempt-log",
		"-X", "security.protocol=SASL_PLAINTEXT", "-X", "sasl.mechanism=PLAIN",
		"-X", "sasl.username="+user, "-X", "sasl.password="+password)
	return exec.Command(s.program, args...)
}

// run runs a command to its end.
func (s speaker) run(user, input string, args ...string) (string, error) {
	command := s.command(user, args...)
	command.Stdin = strings.NewReader(input)
	output, err := command.CombinedOutput()
	return string(output), err
}

func (s speaker) must(user, input string, args ...string) string {
	s.t.Helper()
	output, err := s.run(user, input, args...)
	if err != nil {
		s.t.Fatalf("%s as %s: %v\n%s", args, user, err, output)
	}
	return output
}

// A role that runs.
type role struct {
	t       *testing.T
	name    string
	command *exec.Cmd
	log     string
	http    string
	ended   chan struct{}
	err     error
	stopped bool
}

func (s speaker) start(name string) *role {
	s.t.Helper()
	running := &role{t: s.t, name: name, http: "127.0.0.1:" + freePort(s.t), log: filepath.Join(s.t.TempDir(), name+".log")}
	running.command = s.command("hookstream-"+name, name, "--instance", "hookstream-"+name+"-0", "--http-listen", running.http,
		"--egress-allow-http", "--egress-allow-cidr", "127.0.0.0/8", "--egress-ports", "any")
	log := must[*os.File](s.t)(os.Create(running.log))
	running.command.Stderr = log
	if err := running.command.Start(); err != nil {
		s.t.Fatal(err)
	}
	log.Close()
	running.ended = make(chan struct{})
	go func() {
		running.err = running.command.Wait()
		close(running.ended)
	}()
	s.t.Cleanup(running.stop)
	return running
}

func (r *role) hasEnded() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// end ends the role, unless it has ended by itself, and returns its log.
func (r *role) end() string {
	r.stopped = true
	if !r.hasEnded() {
		if err := r.command.Process.Signal(syscall.SIGTERM); err != nil {
			r.t.Errorf("%s: %v", r.name, err)
		}
	}
	<-r.ended
	return string(must[[]byte](r.t)(os.ReadFile(r.log)))
}

// stop ends the role in order; the log must not say that something was denied.
func (r *role) stop() {
	if r.stopped {
		return
	}
	ended := r.hasEnded()
	log := r.end()
	if r.err != nil || ended || r.t.Failed() {
		r.t.Errorf("%s: %v\n%s", r.name, r.err, log)
	}
	for _, line := range strings.Split(log, "\n") {
		if lower := strings.ToLower(line); strings.Contains(lower, "authoriz") || strings.Contains(lower, "denie") {
			r.t.Errorf("%s: %s", r.name, line)
		}
	}
}

func (r *role) get(path string) (int, string) {
	response, err := http.Get("http://" + r.http + path)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(response.Body); err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, body.String()
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	const patience = 3 * time.Minute
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func strimzi(t *testing.T, kind string) []Object {
	t.Helper()
	return slices.DeleteFunc(must[[]Object](t)(compose("strimzi")), func(one Object) bool { return one.kind() != kind })
}

func TestOnABrokerTheStrimziComponentIsRight(t *testing.T) {
	path := program(t)
	users := strimzi(t, "KafkaUser")
	var names []string
	for _, user := range users {
		names = append(names, user.name())
	}
	broker := startBroker(t, names)
	client := must[*kgo.Client](t)(kgo.NewClient(kgo.SeedBrokers(broker.open)))
	defer client.Close()
	for _, user := range users {
		grant(t, client, user)
	}
	logAllowed(t, client)
	speaker := speaker{t: t, program: path, broker: broker}
	t.Run("its topics are those of topics create", func(t *testing.T) { compareTopics(t, path, broker) })
	t.Run("its users may do what they must, and no more", func(t *testing.T) {
		speaker.t = t
		exercise(t, speaker, client)
		for _, permission := range unused(t, users, broker.log) {
			t.Errorf("unused permission: %s", permission)
		}
	})
	t.Run("a role that may not begin says what it lacks", func(t *testing.T) {
		speaker.t = t
		withoutPermissions(t, speaker, client, users)
	})
}

// compareTopics: with default settings and three brokers.
func compareTopics(t *testing.T, path string, broker broker) {
	output, err := exec.Command(path, "topics", "create", "--dry-run", "--replication-factor", "3", "-o", "json",
		"--brokers", broker.open).Output()
	if err != nil {
		t.Fatal(err)
	}
	var created []struct {
		Topic             string
		Partitions        int
		ReplicationFactor int `json:"replication_factor"`
		Config            map[string]string
	}
	if err := json.Unmarshal(output, &created); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	topics := strimzi(t, "KafkaTopic")
	if len(topics) != len(created) || len(created) < 10 {
		t.Errorf("there are %d KafkaTopics, and `topics create` makes %d", len(topics), len(created))
	}
	for _, wanted := range created {
		position := slices.IndexFunc(topics, func(one Object) bool { return one.name() == wanted.Topic })
		if position < 0 {
			t.Errorf("there is no KafkaTopic %s", wanted.Topic)
			continue
		}
		config := map[string]string{}
		for key, value := range object(topics[position], "spec", "config") {
			if number, ok := value.(float64); ok {
				value = fmt.Sprintf("%.0f", number)
			}
			config[key] = fmt.Sprint(value)
		}
		if !reflect.DeepEqual(config, wanted.Config) {
			t.Errorf("%s: its config is %v, should be %v", wanted.Topic, config, wanted.Config)
		}
		spec := object(topics[position], "spec")
		if spec["partitions"] != float64(wanted.Partitions) || spec["replicas"] != float64(wanted.ReplicationFactor) {
			t.Errorf("%s: %v partitions and %v replicas, should be %d and %d", wanted.Topic, spec["partitions"], spec["replicas"], wanted.Partitions, wanted.ReplicationFactor)
		}
	}
}

// Endpoints for each way that a command can end.
const subscriptions = `[
 {"id":"fine","subscriber":"fine","url":"URL/fine","events":["order.created"]},
 {"id":"refused","subscriber":"refused","url":"URL/refused","events":["order.created"]},
 {"id":"gone","subscriber":"gone","url":"URL/gone","events":["order.created"]},
 {"id":"flaky","subscriber":"flaky","url":"URL/flaky","events":["order.created"],"order":"strict"},
 {"id":"asked","subscriber":"asked","url":"URL/asked","events":["order.never"],"verify":true}
]`

func exercise(t *testing.T, as speaker, client *kgo.Client) {
	var fine, flaky, refused atomic.Int64
	receiver := httptest.NewServer(http.HandlerFunc(func(to http.ResponseWriter, from *http.Request) {
		switch from.URL.Path {
		case "/fine":
			fine.Add(1)
		case "/refused":
			refused.Add(1)
			to.WriteHeader(http.StatusBadRequest)
		case "/gone":
			to.WriteHeader(http.StatusGone)
		case "/asked":
			to.Header().Set("WebHook-Allowed-Origin", "*")
		case "/flaky":
			// Each event's first attempt fails.
			if from.Header.Get("hookstream-attempt") == "1" {
				to.WriteHeader(http.StatusInternalServerError)
			} else {
				flaky.Add(1)
			}
		}
	}))
	defer receiver.Close()

	topics := func() {
		as.must("hookstream-topics", "", "topics", "create", "--with-events", "--partitions", "1", "--replication-factor", "1")
	}
	topics()
	// The second time it reads what the first has recorded; fan-out then records its start itself.
	topics()
	forgetStarts(t, client)
	as.must("hookstream-operator", strings.ReplaceAll(subscriptions, "URL", receiver.URL), "subscriptions", "apply", "-f", "-")
	as.must("hookstream-operator", "", "topics", "check", "--replication-factor", "1")

	fanout, deliver, release, lag := as.start("fanout"), as.start("deliver"), as.start("release"), as.start("lag")
	for _, one := range []*role{fanout, deliver, release, lag} {
		until(t, one.name+" is ready", func() bool { status, _ := one.get("/readyz"); return status == http.StatusOK })
	}
	produce := func(topic, value string) {
		if err := client.ProduceSync(context.Background(), &kgo.Record{Topic: topic, Value: []byte(value)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	event := func(id int) {
		produce("order-events", fmt.Sprintf(`{"id":"%d","type":"order.created","subject":"order-1","data":{}}`, id))
	}
	event(1)
	until(t, "what is fine is delivered", func() bool { return fine.Load() >= 1 })
	until(t, "what failed is retried and delivered", func() bool { return flaky.Load() >= 1 })
	until(t, "what is refused, and what is gone, are dead letters", func() bool {
		return strings.Count(as.must("hookstream-operator", "", "dead-letters", "list", "-o", "jsonl"), "\n") >= 2
	})
	until(t, "the subscription of the endpoint that is gone is disabled", func() bool {
		return strings.Contains(as.must("hookstream-operator", "", "subscriptions", "show", "gone", "-o", "json"), `"disabled"`)
	})
	until(t, "deliver records that an endpoint consents", func() bool {
		return strings.Contains(as.must("hookstream-operator", "", "subscriptions", "show", "asked", "-o", "json"), `"verified"`)
	})
	// Each role sets aside what it cannot read.
	for _, topic := range []string{"order-events", "webhook-commands", "webhook-retry-1s"} {
		produce(topic, "no JSON")
	}
	until(t, "what cannot be read is set aside", func() bool { return records(t, client, "webhook-invalid-events") == 3 })
	until(t, "attempts are recorded", func() bool { return records(t, client, "webhook-attempts") >= 5 })

	until(t, "deliver compares its clock with the brokers'", func() bool {
		_, metrics := deliver.get("/metrics")
		return strings.Contains(metrics, `hookstream_clock_skew_seconds{against="brokers"}`)
	})

	// A restart of deliver looks ahead for what ordered subscriptions have under way.
	deliver.stop()
	if output, err := as.run("hookstream-lag", "", "positions", "set", "webhook-commands", "--to", "now", "--yes"); err == nil || !strings.Contains(output, "denies") {
		t.Errorf("the lag role's user may set positions: %v\n%s", err, output)
	}
	as.must("hookstream-operator", "", "positions", "set", "webhook-commands", "--to", "now", "--yes")
	as.must("hookstream-operator", "", "positions", "show")
	event(2)
	until(t, "the second event has its commands", func() bool {
		_, metrics := fanout.get("/metrics")
		return strings.Contains(metrics, `hookstream_events_total{result="fanned_out"} 2`)
	})
	as.start("deliver")
	until(t, "the second event is delivered in order", func() bool { return flaky.Load() >= 2 })

	until(t, "the lag role knows the retention of the topics in which work waits, and who disabled a subscription", func() bool {
		_, metrics := lag.get("/metrics")
		for _, wanted := range []string{
			`hookstream_topic_retention_seconds{topic="order-events"}`,
			`hookstream_topic_retention_seconds{topic="webhook-commands"}`,
			`hookstream_topic_retention_seconds{topic="webhook-retry-1s"}`,
			`hookstream_disabled_subscriptions{by="hookstream"} 1`,
		} {
			if !strings.Contains(metrics, wanted) {
				return false
			}
		}
		return true
	})

	fanout.stop()
	event(3)
	until(t, "the lag role says how old an event is that waits for fan-out", func() bool {
		_, figures := lag.get("/lag")
		return strings.Contains(figures, `"behind":1`)
	})
	until(t, "the lag role counts", func() bool {
		_, body := lag.get("/lag")
		return strings.Contains(body, `"as_of":"2`)
	})
	before := refused.Load()
	as.must("hookstream-operator", "", "replay", "--dead-letters", "--subscription", "refused", "--yes")
	until(t, "what was replayed is sent again", func() bool { return refused.Load() > before })
	as.must("hookstream-operator", "", "invalid-events", "replay", "--yes")
	as.must("hookstream-operator", "", "publish", "-n", "1")
	as.must("hookstream-operator", "", "trace", "1")
	as.must("hookstream-operator", "", "lag", "--once")
	as.must("hookstream-operator", "", "topics", "add-partitions", "2", "--yes", "--reorder")

	// Other roles' work is denied.
	for user, args := range map[string][]string{
		"hookstream-fanout":  {"dead-letters", "list"},
		"hookstream-release": {"dead-letters", "list"},
		"hookstream-lag":     {"replay", "--dead-letters", "--yes"},
		"hookstream-topics":  {"dead-letters", "list"},
		"hookstream-deliver": {"trace", "1"},
	} {
		if output, err := as.run(user, "", args...); err == nil {
			t.Errorf("%s may do %v:\n%s", user, args, output)
		}
	}
	if output, err := as.run("hookstream-fanout", "", "deliver", "--http-listen", "127.0.0.1:0"); err == nil || !strings.Contains(output, "denies") {
		t.Errorf("fan-out's user may deliver: %v\n%s", err, output)
	}
}

// withoutPermissions starts roles that lack one permission each. No role runs.
func withoutPermissions(t *testing.T, as speaker, client *kgo.Client, users []Object) {
	user := func(name string) Object {
		return users[slices.IndexFunc(users, func(one Object) bool { return one.name() == name })]
	}
	// An installation whose roles may not record their start, as before version 0.2, goes on.
	forgetStarts(t, client)
	revoke(t, client, "hookstream-fanout", kmsg.ACLResourceTypeTopic, "webhook-subscriptions", kmsg.ACLOperationWrite)
	for _, operation := range []kmsg.ACLOperation{kmsg.ACLOperationWrite, kmsg.ACLOperationRead, kmsg.ACLOperationDescribe} {
		revoke(t, client, "hookstream-release", kmsg.ACLResourceTypeTopic, "webhook-subscriptions", operation)
	}
	for _, name := range []string{"fanout", "release"} {
		role := as.start(name)
		until(t, name+" is ready", func() bool { status, _ := role.get("/readyz"); return status == http.StatusOK })
		if log := role.end(); !strings.Contains(log, "the start is not recorded") || !strings.Contains(log, "webhook-subscriptions") {
			t.Errorf("%s does not say that its start is not recorded:\n%s", name, log)
		}
	}
	// At a first start each permission is needed.
	for _, lack := range []struct {
		role, name string
		resource   kmsg.ACLResourceType
		operation  kmsg.ACLOperation
	}{
		{"fanout", "webhook-subscriptions", kmsg.ACLResourceTypeTopic, kmsg.ACLOperationWrite},
		{"fanout", "order-events", kmsg.ACLResourceTypeTopic, kmsg.ACLOperationRead},
		{"fanout", "hookstream-fanout", kmsg.ACLResourceTypeGroup, kmsg.ACLOperationRead},
		{"release", "webhook-subscriptions", kmsg.ACLResourceTypeTopic, kmsg.ACLOperationRead},
		{"release", "hookstream-release-", kmsg.ACLResourceTypeTransactionalId, kmsg.ACLOperationWrite},
		{"deliver", "hookstream-deliver", kmsg.ACLResourceTypeGroup, kmsg.ACLOperationRead},
		{"deliver", "webhook-commands", kmsg.ACLResourceTypeTopic, kmsg.ACLOperationRead},
	} {
		grant(t, client, user("hookstream-"+lack.role))
		forgetStarts(t, client)
		forgetGroup(t, client, "hookstream-"+lack.role)
		revoke(t, client, "hookstream-"+lack.role, lack.resource, lack.name, lack.operation)
		role := as.start(lack.role)
		until(t, lack.role+" ends", role.hasEnded)
		log := role.end()
		if code := role.command.ProcessState.ExitCode(); code != 1 || !strings.Contains(log, "the broker denies") {
			t.Errorf("%s without %s on %s ends with %d:\n%s", lack.role, lack.operation, lack.name, code, log)
		}
		grant(t, client, user("hookstream-"+lack.role))
	}
}

// forgetStarts deletes what the roles have recorded of their first starts.
func forgetStarts(t *testing.T, client *kgo.Client) {
	t.Helper()
	for _, record := range read(t, client, "webhook-subscriptions") {
		if bytes.HasPrefix(record.Key, []byte("start/")) {
			tombstone := &kgo.Record{Topic: record.Topic, Key: record.Key}
			if err := client.ProduceSync(context.Background(), tombstone).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// forgetGroup deletes the positions of a group without members.
func forgetGroup(t *testing.T, client *kgo.Client, group string) {
	t.Helper()
	until(t, "the group "+group+" is deleted", func() bool {
		request := kmsg.NewPtrDeleteGroupsRequest()
		request.Groups = []string{group}
		response, err := request.RequestWith(context.Background(), client)
		if err != nil || len(response.Groups) != 1 {
			return false
		}
		code := response.Groups[0].ErrorCode
		return code == 0 || code == kerr.GroupIDNotFound.Code
	})
}

// records that a topic of one partition holds, transactions' ends aside.
func records(t *testing.T, client *kgo.Client, topic string) int {
	t.Helper()
	return len(read(t, client, topic))
}

func read(t *testing.T, client *kgo.Client, topic string) []*kgo.Record {
	t.Helper()
	reader := must[*kgo.Client](t)(kgo.NewClient(
		kgo.SeedBrokers(client.OptValue(kgo.SeedBrokers).([]string)...),
		kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
	))
	defer reader.Close()
	limit, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var all []*kgo.Record
	for limit.Err() == nil {
		all = append(all, reader.PollFetches(limit).Records()...)
	}
	return all
}
