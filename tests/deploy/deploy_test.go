package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func must[T any](t *testing.T) func(value T, err error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// check fails for whatever a schema or the policy says of a set of objects.
func check(t *testing.T, objects []Object) {
	t.Helper()
	validator := must[*Validator](t)(NewValidator())
	for _, one := range objects {
		for _, mistake := range validator.Mistakes(one) {
			t.Error(mistake)
		}
	}
	for _, violation := range violations(objects, must[Settings](t)(readSettings())) {
		t.Error(violation)
	}
}

func components(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, entry := range must[[]os.DirEntry](t)(os.ReadDir(root(kubernetes + "components"))) {
		names = append(names, entry.Name())
	}
	return names
}

// together are components that a user combines.
var together = [][]string{
	{"keda", "monitoring", "network-policy"},
	{"topics-job", "replay-job", "kafka-binding", "config-file", "monitoring", "network-policy", "keda"},
	{"replay-job", "topics-job", "strimzi", "monitoring", "network-policy", "keda"},
}

func TestTheBaseIsValid(t *testing.T) {
	base := must[[]Object](t)(kustomize(kubernetes + "base"))
	check(t, base)
	var names []string
	for _, one := range base {
		if kind := one.kind(); kind == "StatefulSet" || kind == "Deployment" {
			names = append(names, one.name())
		}
	}
	slices.Sort(names)
	if wanted := []string{"hookstream-deliver", "hookstream-fanout", "hookstream-lag", "hookstream-release"}; !slices.Equal(names, wanted) {
		t.Errorf("the workloads are %v, should be %v", names, wanted)
	}
}

func TestEveryOverlayIsValid(t *testing.T) {
	for _, entry := range must[[]os.DirEntry](t)(os.ReadDir(root(kubernetes + "overlays"))) {
		t.Run(entry.Name(), func(t *testing.T) {
			check(t, must[[]Object](t)(kustomize(kubernetes+"overlays/"+entry.Name())))
		})
	}
	t.Run("grafana", func(t *testing.T) { check(t, must[[]Object](t)(kustomize("deploy/grafana"))) })
}

func TestEveryComponentIsValidUponTheBase(t *testing.T) {
	sets := slices.Clone(together)
	for _, name := range components(t) {
		sets = append(sets, []string{name})
	}
	for _, set := range sets {
		t.Run(strings.Join(set, "+"), func(t *testing.T) { check(t, must[[]Object](t)(compose(set...))) })
	}
}

func TestTheCRDsAreValidThemselves(t *testing.T) {
	validator := must[*Validator](t)(NewValidator())
	found := must[[]Object](t)(crds())
	if len(found) != 5 {
		t.Errorf("there are %d CRDs", len(found))
	}
	for _, crd := range found {
		for _, mistake := range validator.Mistakes(crd) {
			t.Error(mistake)
		}
	}
}

// ---- the chart ----------------------------------------------------------------------------------

// byID is a set of objects by id, without what only the chart has: the checksum with which a changed setting rolls
// the pods out.
func byID(t *testing.T, objects []Object) map[string]Object {
	t.Helper()
	content := must[[]byte](t)(json.Marshal(objects))
	var copied []Object
	if err := json.Unmarshal(content, &copied); err != nil {
		t.Fatal(err)
	}
	set := map[string]Object{}
	for _, one := range copied {
		delete(object(one, "spec", "template", "metadata", "annotations"), "checksum/config")
		set[one.id()] = one
	}
	return set
}

// differences of two sets of objects, each with its place.
func differences(path string, left, right any) []string {
	a, aMap := asMap(left)
	b, bMap := asMap(right)
	if !aMap || !bMap {
		if reflect.DeepEqual(left, right) {
			return nil
		}
		return []string{fmt.Sprintf("%s: kustomize has %s, the chart %s", path, shown(left), shown(right))}
	}
	keys := map[string]bool{}
	for key := range a {
		keys[key] = true
	}
	for key := range b {
		keys[key] = true
	}
	var found []string
	for key := range keys {
		found = append(found, differences(path+"/"+key, a[key], b[key])...)
	}
	slices.Sort(found)
	return found
}

// shown is the beginning of a value.
func shown(value any) string {
	const most = 120
	text := fmt.Sprint(value)
	return text[:min(len(text), most)]
}

// asMap also takes a list as one: by the keys by which Kubernetes itself merges lists, whose order means nothing, or else
// by position.
func asMap(value any) (map[string]any, bool) {
	switch value := value.(type) {
	case Object:
		return value, true
	case map[string]any:
		return value, true
	case []any:
		for _, key := range []string{"mountPath", "name"} {
			if byKey := keyed(value, key); byKey != nil {
				return byKey, true
			}
		}
		byPosition := map[string]any{}
		for position, element := range value {
			byPosition[fmt.Sprint(position)] = element
		}
		return byPosition, true
	}
	return nil, false
}

// keyed is nil if an element lacks the key, or two have the same.
func keyed(elements []any, key string) map[string]any {
	set := map[string]any{}
	for _, element := range elements {
		name := text(element, key)
		if name == "" || set[name] != nil {
			return nil
		}
		set[name] = element
	}
	return set
}

func compare(kustomized, charted map[string]Object) []string {
	var found []string
	for id, one := range kustomized {
		if other, there := charted[id]; there {
			found = append(found, differences(id, one, other)...)
		} else {
			found = append(found, id+": the chart lacks it")
		}
	}
	for id := range charted {
		if _, there := kustomized[id]; !there {
			found = append(found, id+": kustomize lacks it")
		}
	}
	slices.Sort(found)
	return found
}

func TestTheChartMakesWhatKustomizeDoes(t *testing.T) {
	cases := []struct {
		name       string
		values     string
		components []string
	}{
		{"the base", "{}", nil},
		{"keda", "keda: {enabled: true}", []string{"keda"}},
		{"monitoring", "{podMonitor: {enabled: true}, prometheusRule: {enabled: true}, dashboards: {enabled: true}}", []string{"monitoring"}},
		{"kafka-binding", "kafkaBinding: {secretName: hookstream-kafka}", []string{"kafka-binding"}},
		{"config-file", fmt.Sprintf("configFile: %q", must[[]byte](t)(os.ReadFile(root(kubernetes+"components/config-file/hookstream.toml")))), []string{"config-file"}},
	}
	for _, one := range cases {
		t.Run(one.name, func(t *testing.T) {
			kustomized := must[[]Object](t)(compose(one.components...))
			charted := must[Chart](t)(helm(one.values))
			for _, difference := range compare(byID(t, kustomized), byID(t, charted.Objects)) {
				t.Error(difference)
			}
			check(t, charted.Objects)
		})
	}
}

func TestADifferenceBetweenChartAndBaseIsFound(t *testing.T) {
	base := byID(t, must[[]Object](t)(kustomize(kubernetes+"base")))
	changes := map[string]string{
		"deliver: {replicas: 4}":                             "StatefulSet hookstream-deliver/spec/replicas",
		"podDisruptionBudget: {enabled: false}":              "PodDisruptionBudget hookstream-lag: the chart lacks it",
		"podMonitor: {enabled: true}":                        "PodMonitor hookstream: kustomize lacks it",
		"settings: {HOOKSTREAM_LOG: debug}":                  "ConfigMap hookstream/data/HOOKSTREAM_LOG",
		"lag: {resources: {limits: {memory: 1Gi}}}":          "Deployment hookstream-lag/spec/template/spec/containers",
		"extraVolumes: [{name: scratch, emptyDir: {}}]":      "StatefulSet hookstream-release/spec/template/spec/volumes",
		"terminationGracePeriodSeconds: 60":                  "StatefulSet hookstream-fanout/spec/template/spec/terminationGracePeriodSeconds",
		"existingSecrets: {env: another-secret}":             "StatefulSet hookstream-fanout/spec/template/spec/containers",
		"topologySpread: {whenUnsatisfiable: DoNotSchedule}": "StatefulSet hookstream-fanout/spec/template/spec/topologySpreadConstraints",
	}
	for values, wanted := range changes {
		found := compare(base, byID(t, must[Chart](t)(helm(values)).Objects))
		if !slices.ContainsFunc(found, func(one string) bool { return strings.Contains(one, wanted) }) {
			t.Errorf("%s: no difference at %q in %v", values, wanted, found)
		}
	}
}

// what people change, all at once.
const manyValues = `
image: {repository: registry.example/hookstream, tag: 0.2.0}
imagePullSecrets: [{name: registry}]
brokers: kafka-1.example:9092
settings: {HOOKSTREAM_DRAIN_DEADLINE: 20s, HOOKSTREAM_MAX_IN_FLIGHT: 512, HOOKSTREAM_ATTEMPT_LOG: true}
terminationGracePeriodSeconds: 60
deliver:
  replicas: 6
  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: pool, operator: In, values: [webhooks]}]}]}}}
  extraEnv: [{name: OTEL_SERVICE_NAME, value: hookstream}]
extraEnvFrom: [{secretRef: {name: more, optional: true}}]
extraVolumes: [{name: ca, configMap: {name: ca, optional: true}}]
extraVolumeMounts: [{name: ca, mountPath: /etc/hookstream/ca, readOnly: true}]
nodeSelector: {kubernetes.io/arch: arm64}
tolerations: [{key: spot, operator: Exists}]
priorityClassName: high
podAnnotations: {team: webhooks}
podLabels: {tier: backend}
podDisruptionBudget: {maxUnavailable: 50%}
serviceAccount: {annotations: {team: webhooks}}
keda: {enabled: true, selector: '{namespace="hooks"}'}
podMonitor: {enabled: true, labels: {release: prometheus}}
prometheusRule: {enabled: true, labels: {release: prometheus}}
dashboards: {enabled: true}
`

func TestTheChartIsValidWithWhatPeopleChange(t *testing.T) {
	charted := must[Chart](t)(helm(manyValues))
	check(t, charted.Objects)
	rendered := string(must[[]byte](t)(yaml.Marshal(charted.Objects)))
	for _, wanted := range []string{
		"registry.example/hookstream:0.2.0", "name: registry", "kafka-1.example:9092", `HOOKSTREAM_MAX_IN_FLIGHT: "512"`,
		"terminationGracePeriodSeconds: 60", "replicas: 6", "key: pool", "OTEL_SERVICE_NAME", "name: more", "/etc/hookstream/ca",
		"kubernetes.io/arch: arm64", "key: spot", "priorityClassName: high", "team: webhooks", "tier: backend",
		"maxUnavailable: 50%", `hookstream_event_lag{namespace="hooks"}`, "release: prometheus",
	} {
		// Deliver's replicas are KEDA's.
		if strings.HasPrefix(wanted, "replicas:") == strings.Contains(rendered, wanted) {
			t.Errorf("%q: rendered %v", wanted, !strings.HasPrefix(wanted, "replicas:"))
		}
	}
	if !strings.Contains(charted.Notes, "hookstream 0.2.0 runs as hookstream-fanout") {
		t.Errorf("the notes are %q", charted.Notes)
	}
}

func TestTwoReleasesInANamespaceDoNotMeet(t *testing.T) {
	one, other := must[Chart](t)(helmAs("hookstream", "{}")), must[Chart](t)(helmAs("eu", "{}"))
	both := slices.Concat(one.Objects, other.Objects)
	for _, duplicate := range duplicates(both) {
		t.Error(duplicate)
	}
	set := Set{objects: both, workloads: must[[]Workload](t)(workloads(both))}
	for _, object := range both {
		set.selectors(object, func(format string, args ...any) { t.Errorf(object.id()+": "+format, args...) })
	}
}

func TestAChangedSettingRollsThePodsOut(t *testing.T) {
	checksum := func(values string) string {
		for _, one := range must[Chart](t)(helm(values)).Objects {
			if one.kind() == "StatefulSet" {
				return text(one, "spec", "template", "metadata", "annotations", "checksum/config")
			}
		}
		return ""
	}
	same, again, changed := checksum("{}"), checksum("deliver: {replicas: 9}"), checksum("settings: {HOOKSTREAM_LOG: debug}")
	if same == "" || same != again || same == changed {
		t.Errorf("checksums: %q, of other replicas %q, of another setting %q", same, again, changed)
	}
}

func TestTheChartRefusesWrongValues(t *testing.T) {
	for values, wanted := range map[string]string{
		"replica: 3":                                     "replica",
		"deliver: {replicas: many}":                      "replicas",
		"image: {tag: latest}":                           "tag",
		"settings: {hookstream_log: info}":               "hookstream_log",
		"settings: {HOOKSTREAM_INSTANCE: one}":           "HOOKSTREAM_INSTANCE",
		"brokers: ''":                                    "brokers",
		"deliver: {resources: {limits: null}}":           "limits",
		"settings: {HOOKSTREAM_DRAIN_DEADLINE: 30s}":     "terminationGracePeriodSeconds is 40",
		"terminationGracePeriodSeconds: 25":              "terminationGracePeriodSeconds is 25",
		"topologySpread: {whenUnsatisfiable: Sometimes}": "whenUnsatisfiable",
		"keda: {selector: namespace}":                    "selector",
	} {
		_, err := helm(values)
		if err == nil || !strings.Contains(err.Error(), wanted) {
			t.Errorf("%s: %v, should name %q", values, err, wanted)
		}
	}
}

// ---- what must be equal -------------------------------------------------------------------------

func TestTheRulesAreThoseOfThePrometheusDirectory(t *testing.T) {
	made := string(must[[]byte](t)(prometheusRule()))
	if there := string(must[[]byte](t)(os.ReadFile(root(prometheusRulePath)))); there != made {
		t.Errorf("%s is not what deploy/prometheus/rules.yaml makes: run `go run . rules` in tests/deploy", prometheusRulePath)
	}
}

// deployedRules are the rules of the sets that have any, as `groups`.
func deployedRules(t *testing.T) map[string]map[string]any {
	t.Helper()
	sets := map[string][]Object{
		"kustomize": must[[]Object](t)(compose("monitoring")),
		"helm":      must[Chart](t)(helm("prometheusRule: {enabled: true}")).Objects,
	}
	rules := map[string]map[string]any{}
	for name, objects := range sets {
		for _, one := range objects {
			if one.kind() == "PrometheusRule" {
				rules[name] = object(one, "spec")
			}
		}
		if rules[name] == nil {
			t.Errorf("%s has no PrometheusRule", name)
		}
	}
	return rules
}

// The links of the alerts begin with a parameter: a value of the chart, or the replacement of the guide, as it stands there.
func TestTheLinksToTheRunbookAreAbsoluteByAParameter(t *testing.T) {
	const url = "https://wiki.example/hookstream/runbook"
	guide := string(must[[]byte](t)(os.ReadFile(root("docs/kubernetes.md"))))
	_, after, found := strings.Cut(guide, "```yaml\n# Links to the runbook\n")
	if !found {
		t.Fatal("docs/kubernetes.md has no replacement of the links")
	}
	more, _, _ := strings.Cut(after, "```")
	sets := map[string][]Object{
		"kustomize": must[[]Object](t)(composeWith(more, "monitoring")),
		"helm":      must[Chart](t)(helm("prometheusRule: {enabled: true, runbookUrl: '" + url + "'}")).Objects,
		"default":   must[[]Object](t)(compose("monitoring")),
	}
	for name, objects := range sets {
		wanted := url
		if name == "default" {
			wanted = "docs/runbook.md"
		}
		alerts := 0
		for _, one := range objects {
			if one.kind() != "PrometheusRule" {
				continue
			}
			for _, group := range list(one, "spec", "groups") {
				for _, rule := range list(group, "rules") {
					alert := text(rule, "alert")
					if alert == "" {
						continue
					}
					alerts++
					if link := text(rule, "annotations", "runbook_url"); link != wanted+"#"+strings.ToLower(alert) {
						t.Errorf("%s: %s links to %s", name, alert, link)
					}
				}
			}
		}
		if alerts < 20 {
			t.Errorf("%s has %d alerts", name, alerts)
		}
	}
	if _, err := helm("prometheusRule: {runbookUrl: 'wiki#a'}"); err == nil || !strings.Contains(err.Error(), "runbookUrl") {
		t.Errorf("a runbook that is no URL: %v", err)
	}
}

func TestPromtoolAcceptsTheRulesAsDeployed(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		skip(t, "without promtool")
	}
	run := func(directory string, args ...string) (string, error) {
		command := exec.Command(promtool, args...)
		command.Dir = directory
		output, err := command.CombinedOutput()
		return string(output), err
	}
	for name, rules := range deployedRules(t) {
		directory := t.TempDir()
		write := func(file string, content []byte) {
			if err := os.WriteFile(filepath.Join(directory, file), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("rules.yaml", must[[]byte](t)(yaml.Marshal(rules)))
		if output, err := run(directory, "check", "rules", "rules.yaml"); err != nil {
			t.Errorf("%s: %v\n%s", name, err, output)
		}
		for _, tests := range []string{"rules_test.yaml", "rules_days_test.yaml"} {
			write(tests, must[[]byte](t)(os.ReadFile(root("deploy/prometheus/"+tests))))
			if output, err := run(directory, "test", "rules", tests); err != nil {
				t.Errorf("%s: %s: %v\n%s", name, tests, err, output)
			}
		}
		write("broken.yaml", []byte("groups: [{name: a, rules: [{record: b, expr: 'sum('}]}]"))
		if output, err := run(directory, "check", "rules", "broken.yaml"); err == nil {
			t.Errorf("a broken rule is accepted: %s", output)
		}
	}
}

func TestAutoscalingAsksForMetricsThatThereAre(t *testing.T) {
	golden := string(must[[]byte](t)(os.ReadFile(root("tests/data/metrics.golden"))))
	var queries []string
	for _, one := range must[[]Object](t)(compose("keda")) {
		for _, trigger := range list(one, "spec", "triggers") {
			queries = append(queries, text(trigger, "metadata", "query"))
		}
	}
	if len(queries) != 3 {
		t.Errorf("there are %d queries", len(queries))
	}
	promtool, missing := exec.LookPath("promtool")
	for _, query := range queries {
		for _, metric := range regexp.MustCompile(`hookstream_[a-z_]+`).FindAllString(query, -1) {
			if !regexp.MustCompile(`\b` + metric + `\b`).MatchString(golden) {
				t.Errorf("%s: tests/data/metrics.golden has no %s", query, metric)
			}
		}
		if missing != nil {
			continue
		}
		file := filepath.Join(t.TempDir(), "rules.yaml")
		rules := map[string]any{"groups": []any{map[string]any{"name": "a", "rules": []any{map[string]any{"record": "a", "expr": query}}}}}
		if err := os.WriteFile(file, must[[]byte](t)(yaml.Marshal(rules)), 0o644); err != nil {
			t.Fatal(err)
		}
		if output, err := exec.Command(promtool, "check", "rules", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", query, err, output)
		}
	}
	if missing != nil {
		skip(t, "the syntax of the queries, without promtool")
	}
}

func TestTheImageHasTheVersionOfTheProgram(t *testing.T) {
	manifest := string(must[[]byte](t)(os.ReadFile(root("Cargo.toml"))))
	version := regexp.MustCompile(`(?m)^version = "([^"]+)"`).FindStringSubmatch(manifest)[1]
	sets := slices.Concat(must[[]Object](t)(compose(components(t)...)), must[[]Object](t)(kustomize(kubernetes+"overlays/quickstart")), must[Chart](t)(helm("{}")).Objects)
	for _, workload := range must[[]Workload](t)(workloads(sets)) {
		if image := workload.spec.Containers[0].Image; workload.isOurs() && image != "hookstream:"+version {
			t.Errorf("%s: its image is %s, should be of %s", workload.id(), image, version)
		}
	}
}

// The guard's networks in src/edge/egress.rs, in the order of the source.
func guardNetworks(t *testing.T, table string) []string {
	t.Helper()
	source := string(must[[]byte](t)(os.ReadFile(root("src/edge/egress.rs"))))
	_, after, found := strings.Cut(source, "const "+table+":")
	if !found {
		t.Fatalf("src/edge/egress.rs has no %s", table)
	}
	body, _, _ := strings.Cut(after, "\n];")
	var networks []string
	for _, match := range regexp.MustCompile(`v4\((\d+), (\d+), (\d+), (\d+), (\d+)\)`).FindAllStringSubmatch(body, -1) {
		networks = append(networks, strings.Join(match[1:5], ".")+"/"+match[5])
	}
	for _, match := range regexp.MustCompile(`v6\(\[([^\]]*)\], (\d+)\)`).FindAllStringSubmatch(body, -1) {
		var groups []string
		for _, group := range strings.Split(match[1], ", ") {
			groups = append(groups, strings.TrimPrefix(group, "0x"))
		}
		network := strings.Join(groups, ":")
		for strings.HasSuffix(network, ":0") {
			network = strings.TrimSuffix(network, ":0")
		}
		networks = append(networks, network+"::/"+match[2])
	}
	return networks
}

func TestTheNetworkPolicyExceptsWhatTheEgressGuardDoes(t *testing.T) {
	v4 := guardNetworks(t, "NOT_PUBLIC_V4")
	// Outside of 2000::/3 nothing is permitted.
	v6 := slices.DeleteFunc(guardNetworks(t, "NOT_PUBLIC_V6"), func(network string) bool {
		return len(strings.Split(network, ":")[0]) < 4 || network[0] < '2' || network[0] > '3'
	})
	if len(v4) < 10 || len(v6) < 4 {
		t.Fatalf("src/edge/egress.rs: its form has changed: %v %v", v4, v6)
	}
	for _, one := range must[[]Object](t)(compose("network-policy")) {
		if one.kind() != "NetworkPolicy" || one.name() != "hookstream-endpoints" {
			continue
		}
		blocks := list(list(one, "spec", "egress")[0], "to")
		for number, wanted := range [][]string{v4, v6} {
			var found []string
			for _, network := range list(blocks[number], "ipBlock", "except") {
				found = append(found, network.(string))
			}
			if !slices.Equal(found, wanted) {
				t.Errorf("block %d excepts %v, should be %v", number, found, wanted)
			}
		}
		return
	}
	t.Error("there is no policy hookstream-endpoints")
}

// The program itself reads the settings of each set.
func TestTheProgramAcceptsTheSettings(t *testing.T) {
	program := root("target/debug/hookstream")
	if given := os.Getenv("PROGRAM_UNDER_TEST"); given != "" {
		program = given
	}
	if _, err := os.Stat(program); err != nil {
		skip(t, "without target/debug/hookstream, which cargo build makes")
	}
	// What the Strimzi component mounts. The program reads these files, and leaves their meaning to the Kafka client.
	const mount = "/etc/hookstream/kafka/"
	certificates := t.TempDir()
	for _, name := range []string{"ca.crt", "user.crt", "user.key"} {
		if err := os.WriteFile(filepath.Join(certificates, name), []byte("PEM\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	accepted := func(settings map[string]any) (string, error) {
		command := exec.Command(program, "config")
		for name, value := range settings {
			here := strings.ReplaceAll(fmt.Sprint(value), mount, certificates+"/")
			command.Env = append(command.Env, name+"="+here)
		}
		output, err := command.CombinedOutput()
		return string(output), err
	}
	sets := map[string][]Object{
		"base":       must[[]Object](t)(kustomize(kubernetes + "base")),
		"quickstart": must[[]Object](t)(kustomize(kubernetes + "overlays/quickstart")),
		"strimzi":    must[[]Object](t)(compose("strimzi")),
		"helm":       must[Chart](t)(helm(manyValues)).Objects,
	}
	for name, objects := range sets {
		for _, one := range objects {
			if one.kind() != "ConfigMap" || one.name() != "hookstream" {
				continue
			}
			output, err := accepted(object(one, "data"))
			if err != nil || strings.Contains(output, "ignored") {
				t.Errorf("%s: %v: %s", name, err, output)
			}
		}
	}
	if output, err := accepted(map[string]any{"HOOKSTREAM_BROKERS": "a:1", "HOOKSTREAM_DRAIN_DEADLINE": "soon"}); err == nil {
		t.Errorf("a wrong setting is accepted: %s", output)
	}
}
