// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strings"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// ReloadPlan writes what a reload would do.
func ReloadPlan(w io.Writer, result *poolv1.ReloadResult) error {
	return reload(w, result, map[poolv1.ReloadAction]string{
		poolv1.ReloadAction_RELOAD_ACTION_NONE:              "is that already; nothing would change",
		poolv1.ReloadAction_RELOAD_ACTION_LIVE:              "would change without new engines",
		poolv1.ReloadAction_RELOAD_ACTION_MAKE_BEFORE_BREAK: "would get new engines first, and then lose the old ones",
		poolv1.ReloadAction_RELOAD_ACTION_BREAK_BEFORE_MAKE: "would lose the old engines first, and then get new ones: an outage",
	}, nil)
}

// ReloadResult writes what a reload has done.
func ReloadResult(w io.Writer, result *poolv1.ReloadResult) error {
	took := [][]string{{"took", Duration(result.GetDuration().AsDuration())}}
	if outage := result.GetOutage().AsDuration(); outage > 0 {
		took = append(took, []string{"outage", Duration(outage)})
	}
	if cut := result.GetRequestsCut(); cut > 0 {
		took = append(took, []string{"cut", counted(uint64(cut), "request")})
	}
	return reload(w, result, map[poolv1.ReloadAction]string{
		poolv1.ReloadAction_RELOAD_ACTION_NONE:              "is that already; nothing is changed",
		poolv1.ReloadAction_RELOAD_ACTION_LIVE:              "is changed; its engines stay",
		poolv1.ReloadAction_RELOAD_ACTION_MAKE_BEFORE_BREAK: "has new engines, which took over before the old ones ended",
		poolv1.ReloadAction_RELOAD_ACTION_BREAK_BEFORE_MAKE: "has new engines, which were started after the old ones had ended",
	}, took)
}

// reload writes a sentence by the action, the fields that differ, and more.
func reload(w io.Writer, result *poolv1.ReloadResult, sentences map[poolv1.ReloadAction]string, more [][]string) error {
	sentence, known := sentences[result.GetAction()]
	if !known {
		sentence = inWords(strings.TrimPrefix(result.GetAction().String(), "RELOAD_ACTION_"))
	}
	if err := write(w, fmt.Appendf(nil, "%s %s\n", result.GetPool().GetPoolId(), sentence)); err != nil {
		return err
	}
	var rows [][]string
	for _, field := range result.GetRestartFields() {
		rows = append(rows, []string{"differs", field + ", which needs new engines"})
	}
	for _, field := range result.GetLiveFields() {
		rows = append(rows, []string{"differs", field})
	}
	return table(w, append(rows, more...))
}
