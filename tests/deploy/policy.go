package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	security "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

// The rules that no schema knows. Violations are sentences that begin with the object.

// grace is what the program may take beyond the drain deadline: GRACE in src/wiring.rs.
const grace = 15 * time.Second

// Settings are the names in src/config/table.rs with their defaults.
type Settings map[string]string

var (
	settingLine  = regexp.MustCompile(`(?m)^ {4}"([a-z-]+)" "[^"]*" "([^"]*)" "`)
	flagVariable = regexp.MustCompile(`^HOOKSTREAM_([A-Z0-9_]+)$`)
)

func readSettings() (Settings, error) {
	source, err := os.ReadFile(root("src/config/table.rs"))
	if err != nil {
		return nil, err
	}
	settings := Settings{"x": "", "config": ""}
	for _, match := range settingLine.FindAllStringSubmatch(string(source), -1) {
		settings[match[1]] = match[2]
	}
	if len(settings) < 20 {
		return nil, fmt.Errorf("src/config/table.rs: found only %d settings: its form has changed", len(settings))
	}
	return settings, nil
}

// allows says whether a variable is a setting, or names a file with one.
func (s Settings) allows(variable string) bool {
	match := flagVariable.FindStringSubmatch(variable)
	if match == nil {
		return true
	}
	name := strings.ToLower(strings.ReplaceAll(match[1], "_", "-"))
	_, known := s[name]
	_, file := s[strings.TrimSuffix(name, "-file")]
	return known || file || name == "config"
}

// A Workload is an object that makes pods.
type Workload struct {
	Object
	template map[string]any
	spec     corev1.PodSpec
	// Whether it runs until it is stopped.
	lasting bool
}

func workloads(objects []Object) ([]Workload, error) {
	var found []Workload
	for _, one := range objects {
		workload := Workload{Object: one}
		switch one.kind() {
		case "Deployment", "StatefulSet", "DaemonSet":
			workload.template, workload.lasting = object(one, "spec", "template"), true
		case "Job":
			workload.template = object(one, "spec", "template")
		case "CronJob":
			workload.template = object(one, "spec", "jobTemplate", "spec", "template")
		case "Pod":
			workload.template = one
		default:
			continue
		}
		content, err := yaml.Marshal(workload.template["spec"])
		if err != nil {
			return nil, err
		}
		if err := yaml.UnmarshalStrict(content, &workload.spec); err != nil {
			return nil, fmt.Errorf("%s: %w", one.id(), err)
		}
		found = append(found, workload)
	}
	return found, nil
}

// labels of the pods.
func (w Workload) labels() labels.Set { return labelSet(w.template, "metadata", "labels") }

func labelSet(from any, keys ...string) labels.Set {
	set := labels.Set{}
	for key, value := range object(from, keys...) {
		set[key], _ = value.(string)
	}
	return set
}

// isOurs says whether it runs hookstream.
func (w Workload) isOurs() bool { return w.spec.Containers[0].Name == "hookstream" }

var restricted = evaluator()

func evaluator() policy.Evaluator {
	checks, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		panic(err)
	}
	return checks
}

// violations of the policy in a set of objects that are applied together.
func violations(objects []Object, settings Settings) []string {
	pods, err := workloads(objects)
	if err != nil {
		return []string{err.Error()}
	}
	set := Set{objects: objects, workloads: pods, settings: settings}
	var found []string
	for _, workload := range pods {
		say := func(format string, args ...any) {
			found = append(found, workload.id()+": "+fmt.Sprintf(format, args...))
		}
		set.podSecurity(workload, say)
		set.pod(workload, say)
		set.references(workload, say)
		for _, container := range slices.Concat(workload.spec.InitContainers, workload.spec.Containers) {
			set.container(workload, container, say)
		}
		if workload.isOurs() {
			set.ours(workload, say)
		}
	}
	for _, one := range objects {
		say := func(format string, args ...any) {
			found = append(found, one.id()+": "+fmt.Sprintf(format, args...))
		}
		set.selectors(one, say)
		set.environment(one, say)
	}
	found = append(found, duplicates(objects)...)
	sort.Strings(found)
	return found
}

func duplicates(objects []Object) []string {
	var found []string
	seen := map[string]bool{}
	for _, one := range objects {
		if seen[one.id()] {
			found = append(found, one.id()+": it is there twice")
		}
		seen[one.id()] = true
	}
	return found
}

// A Set is what is applied together.
type Set struct {
	objects   []Object
	workloads []Workload
	settings  Settings
}

type sayer func(format string, args ...any)

func (s Set) find(kind, name string) (Object, bool) {
	for _, one := range s.objects {
		if one.kind() == kind && one.name() == name {
			return one, true
		}
	}
	return nil, false
}

// podSecurity is Kubernetes' own evaluation of the restricted profile.
func (s Set) podSecurity(workload Workload, say sayer) {
	level := security.LevelVersion{Level: security.LevelRestricted, Version: security.MajorMinorVersion(1, 36)}
	metadata := metav1.ObjectMeta{Labels: workload.labels()}
	for _, result := range restricted.EvaluatePod(level, &metadata, &workload.spec) {
		if !result.Allowed {
			say("not restricted: %s: %s", result.ForbiddenReason, result.ForbiddenDetail)
		}
	}
}

func (s Set) pod(workload Workload, say sayer) {
	spec := workload.spec
	if spec.EnableServiceLinks == nil || *spec.EnableServiceLinks {
		say("enableServiceLinks must be false")
	}
	if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
		say("automountServiceAccountToken must be false")
	}
	for _, constraint := range spec.TopologySpreadConstraints {
		selector, err := metav1.LabelSelectorAsSelector(constraint.LabelSelector)
		if err != nil || !selector.Matches(workload.labels()) {
			say("the spread over %s does not select the pods themselves", constraint.TopologyKey)
		}
		for _, key := range constraint.MatchLabelKeys {
			if !workload.labels().Has(key) {
				say("the spread over %s names the label %s, which the pods lack", constraint.TopologyKey, key)
			}
		}
	}
}

func (s Set) container(workload Workload, container corev1.Container, say sayer) {
	name, tag := imageTag(container.Image)
	switch {
	case strings.Contains(container.Image, "@sha256:"):
	case tag == "":
		say("the image %s has no tag", name)
	case tag == "latest":
		say("the image %s is latest", name)
	}
	if container.Resources.Requests.Cpu().IsZero() {
		say("%s requests no cpu", container.Name)
	}
	if container.Resources.Requests.Memory().IsZero() {
		say("%s requests no memory", container.Name)
	}
	if container.Resources.Limits.Memory().IsZero() {
		say("%s has no limit of memory", container.Name)
	}
	if !container.Resources.Limits.Cpu().IsZero() {
		say("%s has a limit of cpu, which throttles it", container.Name)
	}
	for _, mount := range container.VolumeMounts {
		if mount.SubPath != "" || mount.SubPathExpr != "" {
			say("%s mounts %s by subPath, which never changes again", container.Name, mount.Name)
		}
		if !slices.ContainsFunc(workload.spec.Volumes, func(volume corev1.Volume) bool { return volume.Name == mount.Name }) {
			say("%s mounts %s, and there is no such volume", container.Name, mount.Name)
		}
	}
	probes := map[string]*corev1.Probe{
		"startup": container.StartupProbe, "readiness": container.ReadinessProbe, "liveness": container.LivenessProbe,
	}
	for kind, probe := range probes {
		switch {
		case probe == nil && workload.lasting:
			say("%s has no %s probe", container.Name, kind)
		case probe != nil && !s.hasPort(container, probe):
			say("the %s probe of %s asks a port that it does not have", kind, container.Name)
		}
	}
}

// hasPort says whether a probe's named port is one of the container's.
func (s Set) hasPort(container corev1.Container, probe *corev1.Probe) bool {
	port := ""
	switch {
	case probe.HTTPGet != nil:
		port = probe.HTTPGet.Port.StrVal
	case probe.TCPSocket != nil:
		port = probe.TCPSocket.Port.StrVal
	}
	return port == "" || slices.ContainsFunc(container.Ports, func(one corev1.ContainerPort) bool { return one.Name == port })
}

func imageTag(image string) (name, tag string) {
	image, _, _ = strings.Cut(image, "@")
	colon := strings.LastIndex(image, ":")
	if colon < 0 || strings.Contains(image[colon:], "/") {
		return image, ""
	}
	return image[:colon], image[colon+1:]
}

// ours is what hookstream's own pods need beyond that.
func (s Set) ours(workload Workload, say sayer) {
	container := workload.spec.Containers[0]
	context := container.SecurityContext
	if context == nil || context.ReadOnlyRootFilesystem == nil || !*context.ReadOnlyRootFilesystem {
		say("the root file system is not read-only")
	}
	if user := workload.spec.SecurityContext; user == nil || user.RunAsUser == nil || *user.RunAsUser != 65532 {
		say("the user is not 65532, the image's")
	}
	s.files(workload, say)
	if !workload.lasting {
		return
	}
	if probe := container.LivenessProbe; probe != nil && (probe.HTTPGet == nil || probe.HTTPGet.Path != "/livez") {
		say("the liveness probe does not ask /livez")
	}
	if probe := container.ReadinessProbe; probe != nil && (probe.HTTPGet == nil || probe.HTTPGet.Path != "/readyz") {
		say("the readiness probe does not ask /readyz")
	}
	if probe := container.StartupProbe; probe != nil && (probe.HTTPGet == nil || probe.HTTPGet.Path != "/livez") {
		say("the startup probe does not ask /livez: a pod that waits for a broker would be killed")
	}
	if len(container.Args) != 1 || workload.name() != "hookstream-"+container.Args[0] {
		say("its name is not that of its role, %v", container.Args)
	}
	s.graceful(workload, say)
	if !slices.ContainsFunc(container.Env, func(one corev1.EnvVar) bool {
		return one.Name == "HOOKSTREAM_INSTANCE" && one.ValueFrom != nil && one.ValueFrom.FieldRef != nil &&
			one.ValueFrom.FieldRef.FieldPath == "metadata.name"
	}) {
		say("HOOKSTREAM_INSTANCE is not the pod's name")
	}
	// The instance names the transactional ids of all roles but lag, so it must be stable.
	if stable := workload.kind() == "StatefulSet"; stable == (container.Args[0] == "lag") {
		say("it is a %s, and its role is %s", workload.kind(), container.Args[0])
	}
}

// The connection's files: those of librdkafka's properties, and the binding.
var mountedFile = regexp.MustCompile(`(?:=|^)(/[^;]+)`)

// files that settings name are in a volume.
func (s Set) files(workload Workload, say sayer) {
	for _, name := range []string{"HOOKSTREAM_X", "HOOKSTREAM_KAFKA_BINDING", "HOOKSTREAM_CONFIG"} {
		for _, match := range mountedFile.FindAllStringSubmatch(s.variable(workload, name, ""), -1) {
			if !slices.ContainsFunc(workload.spec.Containers[0].VolumeMounts, func(mount corev1.VolumeMount) bool {
				return match[1] == mount.MountPath || strings.HasPrefix(match[1], mount.MountPath+"/")
			}) {
				say("%s names %s, which no volume has", name, match[1])
			}
		}
	}
}

// graceful: the kubelet kills no process that still drains.
func (s Set) graceful(workload Workload, say sayer) {
	drain, err := time.ParseDuration(s.variable(workload, "HOOKSTREAM_DRAIN_DEADLINE", s.settings["drain-deadline"]))
	if err != nil {
		say("the drain deadline: %v", err)
		return
	}
	given := time.Duration(30) * time.Second
	if seconds := workload.spec.TerminationGracePeriodSeconds; seconds != nil {
		given = time.Duration(*seconds) * time.Second
	}
	if given <= drain+grace {
		say("terminationGracePeriodSeconds is %v, must be more than the drain deadline and %v: %v", given, grace, drain+grace)
	}
}

// variable is the value that a pod's first container sees, Secrets aside.
func (s Set) variable(workload Workload, name, otherwise string) string {
	value := otherwise
	for _, from := range workload.spec.Containers[0].EnvFrom {
		if from.ConfigMapRef == nil {
			continue
		}
		if found, ok := s.find("ConfigMap", from.ConfigMapRef.Name); ok && at(found, "data", name) != nil {
			value = text(found, "data", name)
		}
	}
	for _, one := range workload.spec.Containers[0].Env {
		if one.Name == name {
			value = one.Value
		}
	}
	return value
}

// references: what a pod cannot start without is there. A Secret is, if an operator makes it.
func (s Set) references(workload Workload, say sayer) {
	spec := workload.spec
	need := func(kind, name string, optional *bool) {
		if optional != nil && *optional {
			return
		}
		if _, there := s.find(kind, name); !there && !(kind == "Secret" && s.isMade(name)) {
			say("needs the %s %s, which is not there", kind, name)
		}
	}
	if spec.ServiceAccountName != "" {
		need("ServiceAccount", spec.ServiceAccountName, nil)
	}
	for _, volume := range spec.Volumes {
		if volume.ConfigMap != nil {
			need("ConfigMap", volume.ConfigMap.Name, volume.ConfigMap.Optional)
		}
		if volume.Secret != nil {
			need("Secret", volume.Secret.SecretName, volume.Secret.Optional)
		}
		if volume.Projected != nil {
			for _, source := range volume.Projected.Sources {
				if source.Secret != nil {
					need("Secret", source.Secret.Name, source.Secret.Optional)
				}
			}
		}
	}
	for _, container := range spec.Containers {
		for _, from := range container.EnvFrom {
			if from.ConfigMapRef != nil {
				need("ConfigMap", from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
			}
			if from.SecretRef != nil {
				need("Secret", from.SecretRef.Name, from.SecretRef.Optional)
			}
		}
	}
	if workload.kind() == "StatefulSet" {
		need("Service", text(workload.Object, "spec", "serviceName"), nil)
	}
}

// isMade says whether an operator makes a Secret: Strimzi's those of users and of clusters, its access operator (or
// whoever binds services) the binding.
func (s Set) isMade(secret string) bool {
	if _, user := s.find("KafkaUser", secret); user {
		return true
	}
	return secret == "hookstream-kafka" || slices.ContainsFunc(s.objects, func(one Object) bool {
		return one.kind() == "KafkaUser" && text(one, "metadata", "labels", "strimzi.io/cluster")+"-cluster-ca-cert" == secret
	})
}

// selectors: what selects pods selects some, and exactly those that it is for.
func (s Set) selectors(one Object, say sayer) {
	selected := func(selector labels.Set) []string {
		var names []string
		for _, workload := range s.workloads {
			if selector.AsSelector().Matches(workload.labels()) {
				names = append(names, workload.name())
			}
		}
		return names
	}
	switch one.kind() {
	case "StatefulSet", "Deployment":
		if names := selected(labelSet(one, "spec", "selector", "matchLabels")); !slices.Equal(names, []string{one.name()}) {
			say("it selects the pods of %v", names)
		}
		if budget, there := s.find("PodDisruptionBudget", one.name()); !there && strings.HasPrefix(one.name(), "hookstream-") {
			say("it has no PodDisruptionBudget")
		} else if there && budget.kind() == "" {
			say("its PodDisruptionBudget has no kind")
		}
	case "PodDisruptionBudget", "Service":
		keys := []string{"spec", "selector"}
		if one.kind() == "PodDisruptionBudget" {
			keys = append(keys, "matchLabels")
		}
		if names := selected(labelSet(one, keys...)); !slices.Equal(names, []string{one.name()}) {
			say("it selects the pods of %v", names)
		}
	case "NetworkPolicy":
		if len(selected(labelSet(one, "spec", "podSelector", "matchLabels"))) == 0 {
			say("it selects no pods")
		}
	case "PodMonitor":
		names := selected(labelSet(one, "spec", "selector", "matchLabels"))
		for _, workload := range s.workloads {
			if workload.lasting && workload.isOurs() && !slices.Contains(names, workload.name()) {
				say("it does not select the pods of %s", workload.name())
			}
		}
	case "ScaledObject":
		target, there := s.find(text(one, "spec", "scaleTargetRef", "kind"), text(one, "spec", "scaleTargetRef", "name"))
		if !there {
			say("there is nothing of the name of its target")
		} else if at(target, "spec", "replicas") != nil {
			say("its target has a number of replicas, which every apply would put back")
		}
	}
}

// environment: what looks like a setting is one.
func (s Set) environment(one Object, say sayer) {
	var names []string
	switch one.kind() {
	case "ConfigMap":
		for name := range object(one, "data") {
			names = append(names, name)
		}
	default:
		for _, workload := range s.workloads {
			if workload.id() == one.id() {
				for _, variable := range workload.spec.Containers[0].Env {
					names = append(names, variable.Name)
				}
			}
		}
	}
	for _, name := range names {
		if !s.settings.allows(name) {
			say("%s is an unknown setting", name)
		}
	}
}
