// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

// file returns the name and the bytes of a record's file.
func file[T content](t testing.TB, v T) (string, []byte) {
	t.Helper()
	name, text, err := encode(v)
	if err != nil {
		t.Fatal(err)
	}
	return name, text
}

// seal returns a file of this kind and schema with a good checksum, whatever the record is.
func seal(k kind, version int, record string) []byte {
	return fmt.Appendf(nil, `{"schema":%d,"sha256":%q,"record":%s}`, version, k.sum(version, []byte(record)), record)
}

// TestRecordOfSchema1 reads a file that version 1 has written.
func TestRecordOfSchema1(t *testing.T) {
	t.Parallel()
	const name = "chat.A-7-1-g12.json"
	old, err := os.ReadFile(filepath.Join("testdata", "v1", name))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := openDir(t, dir)
	if err := os.WriteFile(filepath.Join(dir, recordDir, name), old, 0o600); err != nil {
		t.Fatal(err)
	}
	want := Record{
		PoolID: "chat.A-7", Replica: 1, Generation: 12, Edition: 1, PreparedID: "sha256:5f2b", Phase: Started,
		Identity: process.Identity{
			BootID: "0d1f3c1e-7a55-4f0e-9b1c-3f6f6f0a2b77", PID: 4242, StartTicks: 987654,
			Executable: "/srv/<engines> & co/llama-server", Nonce: "00112233445566778899aabbccddeeff",
		},
		Executable: "/srv/engine", LogPath: "/var/log/roundhouse/chat.A-7/1-g12.log", Endpoint: "http://127.0.0.1:43121",
		CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC), StartedAt: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
	}
	if diff := cmp.Diff(Loaded{Records: []Record{want}}, mustLoad(t, s)); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	// It is replaced and removed as any other.
	want.Phase = Ready
	if err := s.Save(want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Loaded{Records: []Record{want}}, mustLoad(t, s)); diff != "" {
		t.Errorf("loaded after a save (-want +got):\n%s", diff)
	}
	if err := s.Remove(want.Key()); err != nil {
		t.Fatal(err)
	}
	if got := mustLoad(t, s); len(got.Records)+len(got.Quarantined) != 0 {
		t.Errorf("after its removal: %+v", got)
	}
}

// flipAll flips each bit of a record's file: it must be refused, or be read as the same.
func flipAll[T content](t *testing.T, v T) {
	t.Helper()
	name, text := file(t, v)
	whole, tried, refused := len(bytes.TrimRight(text, " \n")), 0, 0
	for i := range len(text) * 8 {
		if i/8 > whole+2 && i/8%50 != 0 { // Of the padding, some.
			continue
		}
		tried++
		flipped := bytes.Clone(text)
		flipped[i/8] ^= 1 << (i % 8)
		got, err := decode[T](name, flipped)
		if err != nil {
			refused++
		} else if diff := cmp.Diff(v, got); diff != "" {
			t.Errorf("with bit %d of byte %d (%q) flipped (-want +got):\n%s", i%8, i/8, text[i/8], diff)
		}
	}
	if accepted := tried - refused; accepted > 20 { // Letters of the envelope's names in upper case.
		t.Errorf("%d of %d flips were accepted", accepted, tried)
	}
}

func TestFlippedBits(t *testing.T) {
	t.Parallel()
	t.Run("engine", func(t *testing.T) { t.Parallel(); flipAll(t, testRecord("a", 1)) })
	t.Run("pool", func(t *testing.T) { t.Parallel(); flipAll(t, testPool("a", 1)) })
	t.Run("start", func(t *testing.T) { t.Parallel(); flipAll(t, testStart("a", 0, 1)) })
	t.Run("id", func(t *testing.T) { t.Parallel(); flipAll(t, identity{ID: "5e1f"}) })
}

// cutAll cuts a record's file everywhere. What is cut of the padding is not missed.
func cutAll[T content](t *testing.T, v T) {
	t.Helper()
	name, text := file(t, v)
	whole := len(bytes.TrimRight(text, " \n"))
	for n := range text {
		if n > whole+2 && n%100 != 0 {
			continue
		}
		got, err := decode[T](name, text[:n])
		if (err == nil) != (n >= whole) {
			t.Fatalf("cut to %d of %d bytes: %v", n, whole, err)
		}
		if diff := cmp.Diff(v, got); err == nil && diff != "" {
			t.Fatalf("cut to %d of %d bytes (-want +got):\n%s", n, whole, diff)
		}
	}
}

func TestCutFiles(t *testing.T) {
	t.Parallel()
	cutAll(t, testRecord("a", 1))
	cutAll(t, testPool("a", 1))
	cutAll(t, testStart("a", 0, 1))
	cutAll(t, identity{ID: "5e1f"})
}

// TestBadFilesAreQuarantined puts what is no record into the folders of engines and pools, twice under the same name.
func TestBadFilesAreQuarantined(t *testing.T) {
	t.Parallel()
	_, engine := file(t, testRecord("a-0", 1))
	_, pool := file(t, testPool("a-0", 1))
	engines, pools := Record{}.kind(), PoolRecord{}.kind()
	unordered := `{"pool_id":"a-0","replicas":[{"index":1},{"index":1}]}`
	longName := strings.Repeat("x", 255)
	for _, tt := range []struct {
		name  string
		kind  kind
		file  string
		text  []byte
		aside string // its name in the quarantine.
		pool  string
		want  string
	}{
		{"empty", engines, "a-0-0-g1.json", nil, "a-0-0-g1.json", "a-0", "torn"},
		{"torn", engines, "a-0-0-g1.json", engine[:300], "a-0-0-g1.json", "a-0", "torn"},
		{"something behind", engines, "a-0-0-g1.json", append(bytes.Clone(engine), '{'), "a-0-0-g1.json", "a-0", "torn"},
		{"one digit changed", engines, "a-0-0-g1.json", bytes.Replace(engine, []byte(`"pid":42`), []byte(`"pid":43`), 1),
			"a-0-0-g1.json", "a-0", "checksum"},
		{"a later schema", engines, "a-0-0-g1.json", seal(engines, 3, `{"pool_id":"a-0"}`), "a-0-0-g1.json", "a-0",
			"schema 3 is of a later version, this manager knows up to 2"},
		{"no schema", engines, "a-0-0-g1.json", seal(engines, 0, `{}`), "a-0-0-g1.json", "a-0", "schema 0, this manager knows 1 to 2"},
		{"schema 2 called schema 1", engines, "a-0-0-g1.json", bytes.Replace(engine, []byte(`"schema":2`), []byte(`"schema":1`), 1),
			"a-0-0-g1.json", "a-0", "checksum"},
		{"another's name", engines, "b-0-g1.json", engine, "b-0-g1.json", "b", "belongs into a-0-0-g1.json"},
		{"another's file", engines, "notes.txt", []byte("buy milk"), "notes.txt", "", "torn or foreign"},
		{"a name too long to count", engines, longName, nil, longName[:maxAside], "", "torn"},
		{"not quite a name", engines, "a-00-g1.json", nil, "a-00-g1.json", "", "torn"},
		{"no pool", engines, "7-g1.json", nil, "7-g1.json", "", "torn"},
		{"neither pool nor replica", engines, "-g1.json", nil, "-g1.json", "", "torn"},
		{"no nonce", engines, "a-0-0-g1.json", seal(engines, 2, `{"pool_id":"a-0","generation":1}`), "a-0-0-g1.json", "a-0", "no nonce"},
		{"not a record", engines, "a-0-0-g1.json", seal(engines, 2, `[]`), "a-0-0-g1.json", "a-0", "not a replica"},
		{"a folder out of its id", engines, "a-0-g1.json", seal(engines, 2, `{"pool_id":"../a"}`), "a-0-g1.json", "a", "cannot be recorded"},
		{"a pool among engines", engines, "a-0-0-g1.json", pool, "a-0-0-g1.json", "a-0", "checksum"},
		{"torn pool", pools, "a-0.json", pool[:300], "pool-a-0.json", "a-0", "torn"},
		{"an old pool", pools, "a-0.json", seal(pools, 1, `{"pool_id":"a-0"}`), "pool-a-0.json", "a-0", "schema 1, this manager knows 2 to 2"},
		{"a later pool", pools, "A.json.json", seal(pools, 3, `{"pool_id":"A.json"}`), "pool-A.json.json", "A.json", "later version"},
		{"another pool's name", pools, "A-0.json", pool, "pool-A-0.json", "A-0", "belongs into a-0.json"},
		{"replicas twice", pools, "a-0.json", seal(pools, 2, unordered), "pool-a-0.json", "a-0", "replica 1 after replica 1"},
		{"foreign among pools", pools, ".hidden.json", nil, "pool-.hidden.json", "", "torn"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openDir(t, dir)
			for round, aside := range []string{tt.aside, tt.aside + ".1"} {
				if err := os.WriteFile(filepath.Join(dir, tt.kind.dir, tt.file), tt.text, 0o600); err != nil {
					t.Fatal(err)
				}
				wantAside(t, s, tt.kind, Quarantined{Name: tt.file, Path: filepath.Join(dir, quarantineDir, aside), PoolID: tt.pool, Reason: tt.want})
				if kept, err := os.ReadFile(filepath.Join(dir, quarantineDir, aside)); err != nil || !bytes.Equal(kept, tt.text) {
					t.Errorf("round %d: quarantine holds %q, %v", round, kept, err)
				}
			}
			if got := mustLoad(t, s); len(got.Quarantined) != 0 {
				t.Errorf("a later load quarantines again: %+v", got.Quarantined)
			}
		})
	}
}

// wantAside loads one kind, in which there are a good record and one bad file.
func wantAside(t *testing.T, s *Store, k kind, want Quarantined) {
	t.Helper()
	if err := s.Save(testRecord("z", 9)); err != nil {
		t.Fatal(err)
	}
	if err := s.SavePool(testPool("z", 9)); err != nil {
		t.Fatal(err)
	}
	engines, err := s.Load()
	if err != nil || len(engines.Records) != 1 || engines.Records[0].PoolID != "z" {
		t.Fatalf("Load: %+v, %v; want the record of z", engines, err)
	}
	pools, err := s.LoadPools()
	if err != nil || len(pools.Pools) != 1 || pools.Pools[0].PoolID != "z" {
		t.Fatalf("LoadPools: %+v, %v; want the record of z", pools, err)
	}
	got, none := engines.Quarantined, pools.Quarantined
	if k.dir == poolDir {
		got, none = none, got
	}
	if len(got) != 1 || len(none) != 0 {
		t.Fatalf("quarantined %+v and %+v, want one", got, none)
	}
	if !strings.Contains(got[0].Reason, want.Reason) {
		t.Errorf("quarantined for %q, want %q", got[0].Reason, want.Reason)
	}
	want.Reason = got[0].Reason
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("quarantined (-want +got):\n%s", diff)
	}
}

// TestOddEntriesDoNotStopALoad puts folders and links where files belong, which no save replaces.
func TestOddEntriesDoNotStopALoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	for _, path := range []string{"replicas/a-0-g1.json/full", "pools/a.json/full", "starts/a/0-g1.json/full"} {
		if err := os.MkdirAll(filepath.Join(dir, path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"replicas/b-0-g1.json", "pools/b.json", "starts/a/0-g2.json"} {
		if err := os.Symlink("/dev/zero", filepath.Join(dir, path)); err != nil {
			t.Fatal(err)
		}
	}
	for what, err := range map[string]error{
		"Save": s.Save(testRecord("a", 1)), "SavePool": s.SavePool(testPool("a", 1)), "SaveStart": s.SaveStart(testStart("a", 0, 1)),
	} {
		if err == nil {
			t.Errorf("%s has replaced a folder", what)
		}
	}
	if got := mustLoad(t, s); len(got.Quarantined) != 2 {
		t.Errorf("quarantined: %+v, want the folder and the link", got.Quarantined)
	}
	if got, err := s.LoadPools(); err != nil || len(got.Quarantined) != 2 {
		t.Errorf("quarantined: %+v, %v; want the folder and the link", got.Quarantined, err)
	}
	if got, err := s.Starts("a"); err != nil || len(got) != 0 {
		t.Errorf("Starts: %+v, %v; want none", got, err)
	}
	if aside, err := os.ReadDir(filepath.Join(dir, quarantineDir)); err != nil || len(aside) != 6 {
		t.Errorf("in quarantine: %v, %v; want six", aside, err)
	}
}

// TestFolderInPlaceOfARecord removes one that is empty, and leaves one that is not.
func TestFolderInPlaceOfARecord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	for _, path := range []string{"a-0-g1.json", "a-0-g2.json/full"} {
		if err := os.MkdirAll(filepath.Join(dir, recordDir, path), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(testRecord("a", 1).Key()); err != nil {
		t.Errorf("Remove of an empty folder: %v", err)
	}
	if err := s.Remove(testRecord("a", 2).Key()); reason.Of(err) != reason.StorageFailed {
		t.Errorf("Remove of a folder: got %v, want StorageFailed", err)
	}
	left, err := os.ReadDir(filepath.Join(dir, recordDir))
	if err != nil || len(left) != 1 || left[0].Name() != "a-0-g2.json" {
		t.Errorf("left: %v, %v; want the folder that is not empty", left, err)
	}
}

// fuzzDecode demands that what is accepted is of the file's name and can be saved and read again.
func fuzzDecode[T content](f *testing.F, good T) {
	name, text := file(f, good)
	f.Add(text)
	f.Add(text[:len(text)/3])
	f.Add(seal(good.kind(), schema, `null`))
	f.Add(seal(good.kind(), schema, `{}`))
	f.Add(seal(good.kind(), schema+1, `{}`))
	f.Add(seal(good.kind(), 1, `{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		// Few inputs have a good checksum by themselves: the bytes are also tried as the record of a file that has one.
		for _, input := range [][]byte{text, seal(good.kind(), schema, string(text)), seal(good.kind(), 1, string(text))} {
			v, err := decode[T](name, input)
			if err != nil {
				continue
			}
			again, saved, err := encode(v)
			if err != nil || again != name {
				t.Fatalf("decode(%q): accepted %+v, which is saved as %s, %v", input, v, again, err)
			}
			if got, err := decode[T](name, saved); err != nil {
				t.Errorf("decode(%q): accepted %+v, which comes back as %+v, %v", input, v, got, err)
			}
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	plain, err := json.Marshal(testRecord("a", 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	fuzzDecode(f, testRecord("a", 1))
}

func FuzzDecodePool(f *testing.F) {
	plain, err := json.Marshal(testPool("a", 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	fuzzDecode(f, testPool("a", 1))
}

func FuzzDecodeStart(f *testing.F) {
	plain, err := json.Marshal(testStart("a", 0, 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain)
	fuzzDecode(f, testStart("a", 0, 1))
}
