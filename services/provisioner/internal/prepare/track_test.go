// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

// What programs print, and why steps fail, is passed on without the credentials in it.
func TestProgressHasNoCredentials(t *testing.T) {
	t.Parallel()
	track := newTrack()
	build := plan.Step{ID: plan.EngineBuild, Name: "build"}
	track.begin(build)
	(&step{hub: track.hub, id: build.ID}).line(runner.Stderr, "fatal: unable to access https://user:hunter2@host/x?token=hunter2")
	track.end(t.Context(), build, fmt.Errorf("build: %w", errors.New(`Get "https://host/x?token=hunter2": refused`)))
	events, err := track.hub.Reader().Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprint(events)
	if strings.Contains(text, "hunter2") || !strings.Contains(text, "access https://host/x") || !strings.Contains(text, "refused") {
		t.Errorf("progress is %s", text)
	}
}
