// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
)

// Report is what a run did and how long it took. After a failure it tells how far the run came.
type Report struct {
	// Preset is the spec that was shown.
	Preset string `json:"preset"`
	// Store is the provisioner's store.
	Store string `json:"store"`
	// PreparedID is what was prepared.
	PreparedID string `json:"prepared_id"`
	// Engine is the engine's kind and version.
	Engine string `json:"engine"`
	// Model is the id that the engine served the model under.
	Model string `json:"model"`
	// Endpoint is where it served.
	Endpoint string `json:"endpoint"`
	// Answer is what it said: a sample of its tokens.
	Answer string `json:"answer"`
	// Tokens is how many tokens that was.
	Tokens int `json:"tokens"`
	// TokensPerSecond is how fast they came, the first one left out.
	TokensPerSecond float64 `json:"tokens_per_second"`
	// Changes is how many changes of the pool a watcher was told.
	Changes int `json:"changes"`
	// Timeline is how long each part took.
	Timeline Timeline `json:"timeline"`
	// LeftBehind is what there was at the end that should not have been.
	LeftBehind Counts `json:"left_behind"`
}

// Timeline is how long each part of a run took; 0 for parts that it did not come to.
type Timeline struct {
	// Services is from the start of the daemons to their first answers.
	Services time.Duration
	// Prepare is what the provisioner took.
	Prepare time.Duration
	// Start is from there to the engine's process being made.
	Start time.Duration
	// Ready is from there to the engine being proven ready.
	Ready time.Duration
	// FirstToken is from the question to the first token.
	FirstToken time.Duration
	// Drain is from asking for it to the engine being gone.
	Drain time.Duration
	// Total is the whole run.
	Total time.Duration
}

// MarshalJSON writes every duration in milliseconds.
func (t Timeline) MarshalJSON() ([]byte, error) {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return json.Marshal(struct {
		Services   float64 `json:"services_ms"`
		Prepare    float64 `json:"prepare_ms"`
		Start      float64 `json:"start_ms"`
		Ready      float64 `json:"ready_ms"`
		FirstToken float64 `json:"first_token_ms"`
		Drain      float64 `json:"drain_ms"`
		Total      float64 `json:"total_ms"`
	}{ms(t.Services), ms(t.Prepare), ms(t.Start), ms(t.Ready), ms(t.FirstToken), ms(t.Drain), ms(t.Total)})
}

// WriteJSON writes the report as one line of JSON.
func (r *Report) WriteJSON(w io.Writer) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write report as JSON: %w", err)
	}
	if _, err := w.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

// table is the timeline for people.
func (r *Report) table() string {
	var text strings.Builder
	columns := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(name, value, meaning string) {
		_, _ = fmt.Fprintf(columns, "  %s\t%s\t  %s\n", name, value, meaning)
	}
	t := r.Timeline
	row("services", render.Duration(t.Services), "both daemons up and answering")
	row("prepare", render.Duration(t.Prepare), "engine and model got, verified, put together")
	row("start", render.Duration(t.Start), "code checked, start recorded, process made")
	row("ready", render.Duration(t.Ready), "model loaded, answer proven to be ours")
	row("first token", render.Duration(t.FirstToken), "from the question")
	row("tokens/s", fmt.Sprintf("%.1f", r.TokensPerSecond), fmt.Sprintf("over %d tokens", r.Tokens))
	row("drain", render.Duration(t.Drain), "asked to stop, until no process was left")
	row("total", render.Duration(t.Total), "all of this run")
	_ = columns.Flush() // into memory
	return text.String()
}
