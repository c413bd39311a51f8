// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// columnGap is what separates two columns.
const columnGap = 2

// table writes rows in aligned columns.
func table(w io.Writer, rows [][]string) error {
	var aligned strings.Builder
	columns := tabwriter.NewWriter(&aligned, 0, 0, columnGap, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(columns, strings.Join(row, "\t")); err != nil {
			return fmt.Errorf("align table: %w", err)
		}
	}
	if err := columns.Flush(); err != nil {
		return fmt.Errorf("align table: %w", err)
	}
	var out strings.Builder
	for line := range strings.Lines(aligned.String()) {
		out.WriteString(strings.TrimRight(line, " \n"))
		out.WriteByte('\n')
	}
	return write(w, []byte(out.String()))
}
