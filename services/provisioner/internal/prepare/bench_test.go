// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"testing"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

func BenchmarkPrepareCached(b *testing.B) {
	for _, bench := range []struct {
		name string
		spec func(*fixture) *enginev1.PrepareSpec
	}{
		{name: "mode=external", spec: func(f *fixture) *enginev1.PrepareSpec { return f.externalSpec(modelRef) }},
		{name: "mode=source", spec: func(*fixture) *enginev1.PrepareSpec { return sourceSpec("v1") }},
	} {
		b.Run(bench.name, func(b *testing.B) {
			f := newFixture(b)
			spec := bench.spec(f)
			if _, _, err := f.do(b.Context(), spec); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := f.do(b.Context(), spec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
