package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"sigs.k8s.io/yaml"
)

// A module that carries schemas as files. The modules are not imported (Kubernetes cannot be), so their versions and
// checksums are here and not in go.mod.
type module struct {
	path, version, sum string
	// What is kept of it.
	files []string
}

var modules = []module{
	{
		path: "k8s.io/kubernetes", version: "v1.36.3",
		sum: "h1:qDQdoMiluAE2Eab6Fa52YV+WjiGz9mZFFoagEA6cI+o=",
		files: []string{
			"api/openapi-spec/v3/api__v1_openapi.json",
			"api/openapi-spec/v3/apis__apps__v1_openapi.json",
			"api/openapi-spec/v3/apis__batch__v1_openapi.json",
			"api/openapi-spec/v3/apis__networking.k8s.io__v1_openapi.json",
			"api/openapi-spec/v3/apis__policy__v1_openapi.json",
			"api/openapi-spec/v3/apis__apiextensions.k8s.io__v1_openapi.json",
		},
	},
	{
		path: "github.com/kedacore/keda/v2", version: "v2.21.0",
		sum:   "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
		files: []string{"config/crd/bases/keda.sh_scaledobjects.yaml"},
	},
	{
		path: "github.com/prometheus-operator/prometheus-operator", version: "v0.85.0",
		sum: "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
		files: []string{
			"example/prometheus-operator-crd-full/monitoring.coreos.com_podmonitors.yaml",
			"example/prometheus-operator-crd-full/monitoring.coreos.com_prometheusrules.yaml",
		},
	},
}

// Strimzi publishes no YAML: its generator makes the CRDs from its Java classes.
const strimziPom = "tests/deploy/strimzi/pom.xml"

var strimziClasses = []string{
	"io.strimzi.api.kafka.model.topic.KafkaTopic",
	"io.strimzi.api.kafka.model.user.KafkaUser",
}

// schemaFiles returns the directory that holds what is kept of the modules and the CRDs of Strimzi, and fetches them the
// first time; from then on nothing is asked of a network.
func schemaFiles() (string, error) {
	pom, err := os.ReadFile(root(strimziPom))
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(append([]byte(fmt.Sprintf("%v%v", modules, strimziClasses)), pom...))
	cache := os.Getenv("HOOKSTREAM_CACHE")
	if cache == "" {
		cache = root(".cache")
	}
	cache = filepath.Join(cache, "schemas")
	directory := filepath.Join(cache, fmt.Sprintf("%x", key[:8]))
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// Whole or not at all, and once: into a directory of its own, then renamed, under a lock for other processes.
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(directory); err == nil {
		return directory, nil
	}
	fresh, err := os.MkdirTemp(cache, "fetch-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(fresh)
	fmt.Fprintln(os.Stderr, "deploy: fetching the schemas of Kubernetes, KEDA, the Prometheus operator and Strimzi")
	for _, module := range modules {
		if err := module.fetch(fresh); err != nil {
			return "", fmt.Errorf("fetching %s: %w", module.path, err)
		}
	}
	if err := generateStrimzi(fresh); err != nil {
		return "", fmt.Errorf("fetching the schemas of Strimzi: %w", err)
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return "", err
	}
	return directory, os.Rename(fresh, directory)
}

func (m module) fetch(to string) error {
	command := exec.Command("go", "mod", "download", "-json", m.path+"@"+m.version)
	// Outside of any module: the versions are those above, whatever go.mod says.
	command.Dir = to
	command.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	output, failed := command.Output()
	var answer struct{ Dir, Sum, Error string }
	if err := json.Unmarshal(output, &answer); err != nil {
		return errors.Join(failed, err)
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	if answer.Sum != m.sum {
		return fmt.Errorf("its checksum is %s, should be %s", answer.Sum, m.sum)
	}
	for _, file := range m.files {
		content, err := os.ReadFile(filepath.Join(answer.Dir, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(file)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func generateStrimzi(to string) error {
	jars := filepath.Join(to, "jars")
	defer os.RemoveAll(jars)
	err := quiet(exec.Command("mvn", "-B", "-q", "-f", root(strimziPom), "dependency:copy-dependencies",
		"-DincludeScope=runtime", "-DoutputDirectory="+jars))
	if err != nil {
		return err
	}
	java := "java"
	if home := os.Getenv("JAVA_HOME"); home != "" {
		java = filepath.Join(home, "bin", "java")
	}
	args := []string{"-cp", jars + "/*", "io.strimzi.crdgenerator.CrdGenerator",
		"--target-kube", "1.30+", "--crd-api-version", "v1", "--yaml"}
	for _, class := range strimziClasses {
		name := class[strings.LastIndex(class, ".")+1:]
		args = append(args, class+"="+filepath.Join(to, "kafka.strimzi.io_"+strings.ToLower(name)+"s.yaml"))
	}
	return quiet(exec.Command(java, args...))
}

// quiet runs a command and shows what it printed only if it fails.
func quiet(command *exec.Cmd) error {
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", command.Args[0], err, output)
	}
	return nil
}

// crds are the CustomResourceDefinitions that the manifests use.
//
// Strimzi's generator is only published up to 0.45, whose newest version of these kinds is v1beta2. Strimzi 1.x serves
// v1 alone, with the same fields for topics and users, which is what the manifests say: so v1beta2 is renamed to v1, and
// the other versions are left out.
func crds() ([]Object, error) {
	directory, err := schemaFiles()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(directory, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var all []Object
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		objects, err := parse(file, content)
		if err != nil {
			return nil, err
		}
		for _, crd := range objects {
			if text(crd, "spec", "group") == "kafka.strimzi.io" {
				renameVersion(crd)
			}
			all = append(all, crd)
		}
	}
	return all, nil
}

func renameVersion(crd Object) {
	for _, version := range list(crd, "spec", "versions") {
		if text(version, "name") == "v1beta2" {
			renamed := version.(map[string]any)
			renamed["name"], renamed["served"], renamed["storage"] = "v1", true, true
			object(crd, "spec")["versions"] = []any{renamed}
			return
		}
	}
}

func writeCRDs(directory string) error {
	all, err := crds()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	for _, crd := range all {
		content, err := yaml.Marshal(crd)
		if err != nil {
			return err
		}
		file := filepath.Join(directory, crd.name()+".yaml")
		if err := os.WriteFile(file, bytes.TrimSpace(content), 0o644); err != nil {
			return err
		}
		fmt.Println(file)
	}
	return nil
}
