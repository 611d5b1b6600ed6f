package main

import (
	"os"
	"path/filepath"
	"testing"
)

// skip skips a test, or the rest of it, and records that for the list at the end of `make test` (scripts/skipped).
func skip(t *testing.T, reason string) {
	t.Helper()
	if path := os.Getenv("SKIPPED_CHECKS"); path != "" {
		file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		// In one write, since other tests append at the same time.
		if _, err := file.WriteString(t.Name() + " (" + reason + ")\n"); err != nil {
			t.Fatal(err)
		}
	}
	t.Skip(reason)
}

func TestASkippedCheckIsRecorded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skipped")
	t.Setenv("SKIPPED_CHECKS", path)
	for range 2 {
		t.Run("of the tests", func(t *testing.T) { skip(t, "without a tool") })
	}
	recorded := string(must[[]byte](t)(os.ReadFile(path)))
	name := "TestASkippedCheckIsRecorded/of_the_tests"
	if recorded != name+" (without a tool)\n"+name+"#01 (without a tool)\n" {
		t.Errorf("recorded: %q", recorded)
	}
}
