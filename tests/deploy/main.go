// Command deploy serves the checks of what is in deploy/ (the tests beside it) and two chores:
//
//	go run . crds DIR    writes the CRDs that the manifests use into DIR, for a cluster
//	go run . rules       makes the PrometheusRule of kustomize anew from deploy/prometheus/rules.yaml
//
// It is a Go module of its own because kustomize, Helm's engine and Kubernetes' own policy are Go libraries: the checks
// use them as they are, and need neither their binaries nor a cluster.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "deploy:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "crds":
		return writeCRDs(args[1])
	case len(args) == 1 && args[0] == "rules":
		rule, err := prometheusRule()
		if err != nil {
			return err
		}
		return os.WriteFile(root(prometheusRulePath), rule, 0o644)
	default:
		return fmt.Errorf("usage: go run . crds DIR | rules")
	}
}

// root is the path of a file of the project, whatever the working directory: this module is two levels down.
func root(path string) string {
	directory, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(directory, "Cargo.toml")); err == nil {
			return filepath.Join(directory, path)
		}
		parent := filepath.Dir(directory)
		if parent == directory {
			panic("not in the project: no Cargo.toml above the working directory")
		}
		directory = parent
	}
}
