package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// Object is a Kubernetes object as JSON has it.
type Object map[string]any

// at follows keys down; nil where one is missing.
func at(from any, keys ...string) any {
	for _, key := range keys {
		switch object := from.(type) {
		case Object:
			from = object[key]
		case map[string]any:
			from = object[key]
		default:
			return nil
		}
	}
	return from
}

func text(from any, keys ...string) string {
	found, _ := at(from, keys...).(string)
	return found
}

func list(from any, keys ...string) []any {
	found, _ := at(from, keys...).([]any)
	return found
}

func object(from any, keys ...string) map[string]any {
	found, _ := at(from, keys...).(map[string]any)
	return found
}

func (o Object) kind() string { return text(o, "kind") }
func (o Object) name() string { return text(o, "metadata", "name") }

// id names an object within a set.
func (o Object) id() string {
	return fmt.Sprintf("%s %s %s", text(o, "apiVersion"), o.kind(), o.name())
}

const kubernetes = "deploy/kubernetes/"

// kustomize builds a directory of the project, as `kubectl apply -k` does: nothing outside of a kustomization's own
// directory is read, but other kustomizations.
func kustomize(directory string) ([]Object, error) {
	result, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), root(directory))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", directory, err)
	}
	rendered, err := result.AsYaml()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", directory, err)
	}
	return parse(directory, rendered)
}

// compose builds the base with components, as a user's overlay names them.
func compose(components ...string) ([]Object, error) { return composeWith("", components...) }

// composeWith is compose with more text in the overlay's kustomization.
func composeWith(more string, components ...string) ([]Object, error) {
	parent := root("target")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	directory, err := os.MkdirTemp(parent, "overlay-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(directory)
	var overlay strings.Builder
	overlay.WriteString("resources: [../../" + kubernetes + "base]\ncomponents:\n")
	for _, component := range components {
		overlay.WriteString("  - ../../" + kubernetes + "components/" + component + "\n")
	}
	overlay.WriteString(more)
	if err := os.WriteFile(filepath.Join(directory, "kustomization.yaml"), []byte(overlay.String()), 0o644); err != nil {
		return nil, err
	}
	return kustomize(filepath.Join("target", filepath.Base(directory)))
}

const chartPath = "deploy/helm/hookstream"

// Chart is what Helm makes of the chart.
type Chart struct {
	Objects []Object
	Notes   string
}

// helm renders the chart with `values` as YAML, as `helm template hookstream` does; the values are checked by the chart's
// schema.
func helm(values string) (Chart, error) { return helmAs("hookstream", values) }

func helmAs(release, values string) (Chart, error) {
	// The rules and dashboards are symbolic links to those of deploy/; the loader logs each one.
	log.SetOutput(io.Discard)
	defer log.SetOutput(os.Stderr)
	chart, err := loader.LoadDir(root(chartPath))
	if err != nil {
		return Chart{}, err
	}
	given, err := chartutil.ReadValues([]byte(values))
	if err != nil {
		return Chart{}, err
	}
	options := chartutil.ReleaseOptions{Name: release, Namespace: "default", Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(chart, given, options, chartutil.DefaultCapabilities)
	if err != nil {
		return Chart{}, err
	}
	files, err := engine.Engine{Strict: true}.Render(chart, all)
	if err != nil {
		return Chart{}, err
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	sort.Strings(names)
	rendered := Chart{}
	for _, name := range names {
		if strings.HasSuffix(name, "NOTES.txt") {
			rendered.Notes = files[name]
			continue
		}
		objects, err := parse(name, []byte(files[name]))
		if err != nil {
			return Chart{}, err
		}
		rendered.Objects = append(rendered.Objects, objects...)
	}
	return rendered, nil
}

// parse reads the documents of a YAML stream; a key that occurs twice is a mistake.
func parse(source string, stream []byte) ([]Object, error) {
	var objects []Object
	for _, document := range bytes.Split(append([]byte("\n"), stream...), []byte("\n---")) {
		var parsed Object
		if err := yaml.UnmarshalStrict(document, &parsed); err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
		if len(parsed) > 0 {
			objects = append(objects, parsed)
		}
	}
	return objects, nil
}

const prometheusRulePath = kubernetes + "components/monitoring/prometheusrule.yaml"

// prometheusRule is deploy/prometheus/rules.yaml as the Prometheus operator takes it, comments included.
func prometheusRule() ([]byte, error) {
	rules, err := os.ReadFile(root("deploy/prometheus/rules.yaml"))
	if err != nil {
		return nil, err
	}
	var made bytes.Buffer
	made.WriteString("# Made from deploy/prometheus/rules.yaml by `cd tests/deploy && go run . rules`: change that file.\n" +
		"apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: hookstream\n  labels: {app.kubernetes.io/name: hookstream, app.kubernetes.io/instance: hookstream}\nspec:\n")
	for _, line := range strings.Split(strings.TrimRight(string(rules), "\n"), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		if line != "" {
			line = "  " + line
		}
		made.WriteString(line + "\n")
	}
	return made.Bytes(), nil
}
