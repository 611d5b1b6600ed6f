package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Validator checks objects against the schemas of their kinds, strictly: what a schema does not name is refused, as the
// API server does with `--field-validation=Strict`.
type Validator struct {
	kinds    map[string]*jsonschema.Schema
	metadata *jsonschema.Schema
}

// NewValidator compiles the schemas once for all tests.
var NewValidator = sync.OnceValues(newValidator)

const metadataSchema = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"

func newValidator() (*Validator, error) {
	directory, err := schemaFiles()
	if err != nil {
		return nil, err
	}
	compiler := jsonschema.NewCompiler()
	// OpenAPI 3.0 schemas are a dialect of draft 4.
	compiler.DefaultDraft(jsonschema.Draft4)
	validator := &Validator{kinds: map[string]*jsonschema.Schema{}}
	places := map[string]string{}
	metadata := ""
	files, err := filepath.Glob(filepath.Join(directory, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(content))
		if err != nil {
			return nil, err
		}
		schemas := object(parsed, "components", "schemas")
		for name, schema := range schemas {
			strict(schema, false)
			if name == "io.k8s.apimachinery.pkg.api.resource.Quantity" {
				schemas[name] = map[string]any{"oneOf": []any{
					map[string]any{"type": "number"},
					map[string]any{"type": "string", "pattern": `^[0-9]+(\.[0-9]+)?([eE][0-9]+|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$`},
				}}
			}
			place := "file:///" + filepath.Base(file) + "#/components/schemas/" + name
			for _, kind := range list(schema, "x-kubernetes-group-version-kind") {
				places[gvk(text(kind, "group"), text(kind, "version"), text(kind, "kind"))] = place
			}
			if name == metadataSchema {
				metadata = place
			}
		}
		if err := compiler.AddResource("file:///"+filepath.Base(file), parsed); err != nil {
			return nil, err
		}
	}
	definitions, err := crds()
	if err != nil {
		return nil, err
	}
	for _, crd := range definitions {
		for _, version := range list(crd, "spec", "versions") {
			schema, err := reparsed(at(version, "schema", "openAPIV3Schema"))
			if err != nil {
				return nil, err
			}
			strict(schema, true)
			// It is checked by itself, as the metadata of all kinds.
			object(schema, "properties")["metadata"] = map[string]any{"type": "object"}
			kind := gvk(text(crd, "spec", "group"), text(version, "name"), text(crd, "spec", "names", "kind"))
			place := "file:///crd/" + kind
			if err := compiler.AddResource(place, schema); err != nil {
				return nil, err
			}
			places[kind] = place
		}
	}
	// Only what is used is compiled, when it is used for the first time: Kubernetes has a thousand kinds.
	if validator.metadata, err = compiler.Compile(metadata); err != nil {
		return nil, err
	}
	for _, kind := range used {
		place, known := places[kind]
		if !known {
			return nil, fmt.Errorf("there is no schema of %s", kind)
		}
		if validator.kinds[kind], err = compiler.Compile(place); err != nil {
			return nil, err
		}
	}
	return validator, nil
}

// used are the kinds that deploy/ may have.
var used = []string{
	"v1/ConfigMap", "v1/Namespace", "v1/Service", "v1/ServiceAccount",
	"apps/v1/Deployment", "apps/v1/StatefulSet", "batch/v1/CronJob", "batch/v1/Job",
	"networking.k8s.io/v1/NetworkPolicy", "policy/v1/PodDisruptionBudget",
	"apiextensions.k8s.io/v1/CustomResourceDefinition",
	"keda.sh/v1alpha1/ScaledObject",
	"monitoring.coreos.com/v1/PodMonitor", "monitoring.coreos.com/v1/PrometheusRule",
	"kafka.strimzi.io/v1/KafkaTopic", "kafka.strimzi.io/v1/KafkaUser",
}

func gvk(group, version, kind string) string {
	return strings.TrimPrefix(group+"/"+version+"/"+kind, "/")
}

// reparsed gives the schema the number type that the compiler wants, and a copy to change.
func reparsed(value any) (any, error) {
	content, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(content))
}

// strict refuses what a schema's properties do not name. In a CRD an object without properties holds nothing either,
// unless it preserves what is unknown; in Kubernetes' own schemas it holds anything.
func strict(schema any, crd bool) {
	node, ok := schema.(map[string]any)
	if !ok {
		return
	}
	properties := object(node, "properties")
	for _, property := range properties {
		strict(property, crd)
	}
	strict(node["items"], crd)
	strict(node["additionalProperties"], crd)
	open := node["x-kubernetes-preserve-unknown-fields"] == true || node["x-kubernetes-embedded-resource"] == true
	closed := properties != nil || (crd && node["type"] == "object")
	if _, given := node["additionalProperties"]; closed && !open && !given {
		node["additionalProperties"] = false
	}
	if node["nullable"] == true {
		if kind, ok := node["type"].(string); ok {
			node["type"] = []any{kind, "null"}
		}
	}
}

// Mistakes of an object, each with its place in it.
func (v *Validator) Mistakes(candidate Object) []string {
	kind := text(candidate, "apiVersion") + "/" + candidate.kind()
	schema, known := v.kinds[kind]
	if !known {
		return []string{fmt.Sprintf("%s: there is no schema of %s", candidate.id(), kind)}
	}
	if candidate.name() == "" {
		return []string{kind + ": it has no name"}
	}
	parsed, err := reparsed(candidate)
	if err != nil {
		return []string{err.Error()}
	}
	found := append(mistakes(schema.Validate(parsed), ""), mistakes(v.metadata.Validate(at(parsed, "metadata")), "/metadata")...)
	sort.Strings(found)
	for number, mistake := range found {
		found[number] = candidate.id() + ": " + mistake
	}
	return found
}

// mistakes takes the leaves of a tree of errors: what holds them only says that something below is wrong.
func mistakes(err error, prefix string) []string {
	if err == nil {
		return nil
	}
	var tree *jsonschema.ValidationError
	if !errors.As(err, &tree) {
		return []string{err.Error()}
	}
	if len(tree.Causes) > 0 {
		var all []string
		for _, cause := range tree.Causes {
			all = append(all, mistakes(cause, prefix)...)
		}
		return all
	}
	text := tree.Error()
	return []string{prefix + "/" + strings.Join(tree.InstanceLocation, "/") + ": " + text[strings.LastIndex(text, "\n")+1:]}
}
