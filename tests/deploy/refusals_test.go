package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// Each check must be able to fail: one thing of a valid set is changed, and the message must name it.

// change returns a copy of a set in which `edit` has changed one object.
func change(t *testing.T, objects []Object, id string, edit func(one Object)) []Object {
	t.Helper()
	var copied []Object
	if err := json.Unmarshal(must[[]byte](t)(json.Marshal(objects)), &copied); err != nil {
		t.Fatal(err)
	}
	for _, one := range copied {
		if one.kind()+" "+one.name() == id {
			edit(one)
			return copied
		}
	}
	t.Fatalf("there is no %s", id)
	return nil
}

func without(objects []Object, id string) []Object {
	return slices.DeleteFunc(slices.Clone(objects), func(one Object) bool { return one.kind()+" "+one.name() == id })
}

func pod(one Object) map[string]any { return object(one, "spec", "template", "spec") }

func first(one Object) map[string]any {
	return list(one, "spec", "template", "spec", "containers")[0].(map[string]any)
}

func expect(t *testing.T, found []string, wanted string) {
	t.Helper()
	if !slices.ContainsFunc(found, func(one string) bool { return strings.Contains(one, wanted) }) {
		t.Errorf("nothing says %q; found: %q", wanted, found)
	}
}

func TestTheSchemasRefuse(t *testing.T) {
	validator := must[*Validator](t)(NewValidator())
	objects := must[[]Object](t)(compose("keda", "monitoring", "strimzi", "network-policy", "topics-job"))
	for _, one := range []struct {
		name, id, wanted string
		edit             func(one Object)
	}{
		{"an unknown field", "StatefulSet hookstream-deliver", "replica", func(one Object) { object(one, "spec")["replica"] = 1.0 }},
		{"an unknown field deep inside", "StatefulSet hookstream-deliver", "runAsNonroot", func(one Object) { object(pod(one), "securityContext")["runAsNonroot"] = true }},
		{"an unknown field of the metadata", "ConfigMap hookstream", "label", func(one Object) { object(one, "metadata")["label"] = map[string]any{} }},
		{"a label that is no text", "ConfigMap hookstream", "/metadata/labels/tier", func(one Object) { object(one, "metadata", "labels")["tier"] = 1.0 }},
		{"a value that is no text", "ConfigMap hookstream", "/data/HOOKSTREAM_WORKERS", func(one Object) { object(one, "data")["HOOKSTREAM_WORKERS"] = 2.0 }},
		{"a wrong type", "StatefulSet hookstream-deliver", "/spec/replicas", func(one Object) { object(one, "spec")["replicas"] = "three" }},
		{"a missing field", "StatefulSet hookstream-deliver", "selector", func(one Object) { delete(object(one, "spec"), "selector") }},
		{"a container without a name", "Job hookstream-topics", "name", func(one Object) { delete(first(one), "name") }},
		{"a wrong quantity", "StatefulSet hookstream-deliver", "/limits/memory", func(one Object) { object(first(one), "resources", "limits")["memory"] = "1 GB" }},
		{"a port without a number", "Service hookstream-lag", "port", func(one Object) { delete(list(one, "spec", "ports")[0].(map[string]any), "port") }},
		{"an unknown kind", "Service hookstream-lag", "no schema", func(one Object) { one["kind"] = "Servicee" }},
		{"an old version", "PodDisruptionBudget hookstream-lag", "no schema", func(one Object) { one["apiVersion"] = "policy/v1beta1" }},
		{"an unknown field of a ScaledObject", "ScaledObject hookstream-deliver", "minReplicas", func(one Object) { object(one, "spec")["minReplicas"] = 1.0 }},
		{"a ScaledObject without triggers", "ScaledObject hookstream-deliver", "triggers", func(one Object) { delete(object(one, "spec"), "triggers") }},
		{"an unknown field of a PodMonitor", "PodMonitor hookstream", "endpoints", func(one Object) { object(one, "spec")["endpoints"] = []any{} }},
		{"a rule without an expression", "PrometheusRule hookstream", "expr", func(one Object) {
			group := list(one, "spec", "groups")[0]
			delete(list(group, "rules")[0].(map[string]any), "expr")
		}},
		{"an unknown operation of a KafkaUser", "KafkaUser hookstream-lag", "/operations/0", func(one Object) {
			list(list(one, "spec", "authorization", "acls")[0], "operations")[0] = "Look"
		}},
		{"an unknown field of a KafkaTopic", "KafkaTopic webhook-commands", "partition", func(one Object) { object(one, "spec")["partition"] = 1.0 }},
		{"a NetworkPolicy's address that is no text", "NetworkPolicy hookstream-endpoints", "cidr", func(one Object) {
			object(list(list(one, "spec", "egress")[0], "to")[0], "ipBlock")["cidr"] = 1.0
		}},
	} {
		t.Run(one.name, func(t *testing.T) {
			var changed Object
			var found []string
			set := change(t, objects, one.id, func(object Object) { one.edit(object); changed = object })
			for _, object := range set {
				mistakes := validator.Mistakes(object)
				found = append(found, mistakes...)
				if len(mistakes) > 0 && object.id() != changed.id() {
					t.Errorf("another object is refused: %v", mistakes)
				}
			}
			expect(t, found, one.wanted)
		})
	}
}

func TestAKeyThatOccursTwiceIsRefused(t *testing.T) {
	if _, err := parse("", []byte("a: 1\na: 2\n")); err == nil {
		t.Error("it is accepted")
	}
}

func TestThePolicyRefuses(t *testing.T) {
	settings := must[Settings](t)(readSettings())
	objects := must[[]Object](t)(compose("keda", "monitoring", "network-policy", "topics-job"))
	const deliver = "StatefulSet hookstream-deliver"
	edits := []struct {
		name, id, wanted string
		edit             func(one Object)
	}{
		{"latest", deliver, "is latest", func(one Object) { first(one)["image"] = "hookstream:latest" }},
		{"no tag", deliver, "has no tag", func(one Object) { first(one)["image"] = "registry.example:5000/hookstream" }},
		{"no limit of memory", deliver, "no limit of memory", func(one Object) { delete(object(first(one), "resources", "limits"), "memory") }},
		{"a limit of cpu", deliver, "a limit of cpu", func(one Object) { object(first(one), "resources", "limits")["cpu"] = "1" }},
		{"no request of cpu", deliver, "requests no cpu", func(one Object) { delete(object(first(one), "resources", "requests"), "cpu") }},
		{"no request of memory", "Job hookstream-topics", "requests no memory", func(one Object) { delete(object(first(one), "resources", "requests"), "memory") }},
		{"root", deliver, "not restricted: runAsNonRoot", func(one Object) { delete(object(pod(one), "securityContext"), "runAsNonRoot") }},
		{"no seccomp profile", deliver, "not restricted: seccompProfile", func(one Object) { delete(object(pod(one), "securityContext"), "seccompProfile") }},
		{"capabilities", deliver, "not restricted: unrestricted capabilities", func(one Object) { delete(object(first(one), "securityContext"), "capabilities") }},
		{"escalation", deliver, "not restricted: allowPrivilegeEscalation", func(one Object) { object(first(one), "securityContext")["allowPrivilegeEscalation"] = true }},
		{"a directory of the node", deliver, "not restricted: restricted volume types", func(one Object) {
			pod(one)["volumes"] = append(list(pod(one), "volumes"), map[string]any{"name": "node", "hostPath": map[string]any{"path": "/"}})
		}},
		{"a writable root", deliver, "not read-only", func(one Object) { delete(object(first(one), "securityContext"), "readOnlyRootFilesystem") }},
		{"another user", deliver, "not 65532", func(one Object) { object(pod(one), "securityContext")["runAsUser"] = 1000.0 }},
		{"service links", deliver, "enableServiceLinks", func(one Object) { delete(pod(one), "enableServiceLinks") }},
		{"a token", deliver, "automountServiceAccountToken", func(one Object) { pod(one)["automountServiceAccountToken"] = true }},
		{"a subPath", deliver, "by subPath", func(one Object) { list(first(one), "volumeMounts")[0].(map[string]any)["subPath"] = "key" }},
		{"a mount of nothing", deliver, "there is no such volume", func(one Object) { delete(pod(one), "volumes") }},
		{"no startup probe", deliver, "no startup probe", func(one Object) { delete(first(one), "startupProbe") }},
		{"no readiness probe", deliver, "no readiness probe", func(one Object) { delete(first(one), "readinessProbe") }},
		{"no liveness probe", deliver, "no liveness probe", func(one Object) { delete(first(one), "livenessProbe") }},
		{"a startup that waits for brokers", deliver, "would be killed", func(one Object) { object(first(one), "startupProbe", "httpGet")["path"] = "/readyz" }},
		{"a liveness that waits for brokers", deliver, "does not ask /livez", func(one Object) { object(first(one), "livenessProbe", "httpGet")["path"] = "/readyz" }},
		{"a readiness that does not", deliver, "does not ask /readyz", func(one Object) { object(first(one), "readinessProbe", "httpGet")["path"] = "/livez" }},
		{"an unknown port", deliver, "a port that it does not have", func(one Object) { object(first(one), "readinessProbe", "httpGet")["port"] = "https" }},
		{"too short a grace", deliver, "must be more than the drain deadline", func(one Object) { pod(one)["terminationGracePeriodSeconds"] = 25.0 }},
		{"the default grace", deliver, "terminationGracePeriodSeconds is 30s", func(one Object) {
			delete(pod(one), "terminationGracePeriodSeconds")
			first(one)["env"] = append(list(first(one), "env"), map[string]any{"name": "HOOKSTREAM_DRAIN_DEADLINE", "value": "15s"})
		}},
		{"a longer drain", "ConfigMap hookstream", "must be more than the drain deadline", func(one Object) { object(one, "data")["HOOKSTREAM_DRAIN_DEADLINE"] = "1m" }},
		{"an unknown setting", "ConfigMap hookstream", "HOOKSTREAM_BROKER is an unknown setting", func(one Object) { object(one, "data")["HOOKSTREAM_BROKER"] = "a:1" }},
		{"an unknown variable", deliver, "HOOKSTREAM_FILE is an unknown setting", func(one Object) {
			first(one)["env"] = append(list(first(one), "env"), map[string]any{"name": "HOOKSTREAM_FILE", "value": "x"})
		}},
		{"no instance", deliver, "HOOKSTREAM_INSTANCE is not", func(one Object) { first(one)["env"] = []any{} }},
		{"another role", deliver, "not that of its role", func(one Object) { first(one)["args"] = []any{"fanout"} }},
		{"a Deployment for deliver", deliver, "a Deployment", func(one Object) {
			one["kind"] = "Deployment"
		}},
		{"a spread over others", deliver, "does not select the pods themselves", func(one Object) {
			object(list(pod(one), "topologySpreadConstraints")[0], "labelSelector", "matchLabels")["app.kubernetes.io/name"] = "kafka"
		}},
		{"a spread by an absent label", deliver, "which the pods lack", func(one Object) {
			list(pod(one), "topologySpreadConstraints")[0].(map[string]any)["matchLabelKeys"] = []any{"pod-template-hash"}
		}},
		{"a selector of nothing", "PodDisruptionBudget hookstream-lag", "it selects the pods of []", func(one Object) {
			object(one, "spec", "selector", "matchLabels")["app.kubernetes.io/component"] = "log"
		}},
		{"a selector of too much", "Service hookstream-lag", "it selects the pods of", func(one Object) { delete(object(one, "spec", "selector"), "app.kubernetes.io/component") }},
		{"a monitor of nothing", "PodMonitor hookstream", "does not select the pods of hookstream-lag", func(one Object) { object(one, "spec", "selector", "matchLabels")["app.kubernetes.io/name"] = "x" }},
		{"a policy of nothing", "NetworkPolicy hookstream", "selects no pods", func(one Object) { object(one, "spec", "podSelector", "matchLabels")["app.kubernetes.io/name"] = "x" }},
		{"two who scale", deliver, "has a number of replicas", func(one Object) { object(one, "spec")["replicas"] = 3.0 }},
		{"nothing to scale", "ScaledObject hookstream-deliver", "nothing of the name of its target", func(one Object) { object(one, "spec", "scaleTargetRef")["name"] = "x" }},
		{"a file of no volume", "ConfigMap hookstream", "names /etc/kafka/ca.crt, which no volume has", func(one Object) {
			object(one, "data")["HOOKSTREAM_X"] = "security.protocol=SSL;ssl.ca.location=/etc/kafka/ca.crt"
		}},
		{"a binding of no volume", "ConfigMap hookstream", "names /bindings/kafka, which no volume has", func(one Object) { object(one, "data")["HOOKSTREAM_KAFKA_BINDING"] = "/bindings/kafka" }},
		{"a needed Secret", deliver, "needs the Secret hookstream-env", func(one Object) { delete(object(list(first(one), "envFrom")[1], "secretRef"), "optional") }},
	}
	for _, one := range edits {
		t.Run(one.name, func(t *testing.T) {
			expect(t, violations(change(t, objects, one.id, one.edit), settings), one.wanted)
		})
	}
	for id, wanted := range map[string]string{
		"ConfigMap hookstream":                   "needs the ConfigMap hookstream",
		"ServiceAccount hookstream":              "needs the ServiceAccount hookstream",
		"Service hookstream-deliver":             "needs the Service hookstream-deliver",
		"PodDisruptionBudget hookstream-release": "has no PodDisruptionBudget",
	} {
		t.Run("without "+id, func(t *testing.T) { expect(t, violations(without(objects, id), settings), wanted) })
	}
	t.Run("something twice", func(t *testing.T) {
		expect(t, violations(append(slices.Clone(objects), objects[0]), settings), "it is there twice")
	})
}
