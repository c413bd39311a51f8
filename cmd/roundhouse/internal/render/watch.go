// SPDX-License-Identifier: Apache-2.0

package render

import (
	"io"
	"time"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// Change writes one message of a watch, seen at the given time. Text has nothing for a heartbeat.
func Change(w io.Writer, format Format, at time.Time, message *poolv1.WatchResponse) error {
	if format == JSON {
		return Line(w, message)
	}
	var text string
	switch event := message.GetEvent().(type) {
	case *poolv1.WatchResponse_Upsert:
		text = PoolLine(event.Upsert)
	case *poolv1.WatchResponse_Deleted:
		text = event.Deleted.GetPoolId() + "  deleted"
	case *poolv1.WatchResponse_Synced:
		text = "-- up to date; changes follow"
	case *poolv1.WatchResponse_Reset_:
		text = "-- too long ago to go on from there: all is told anew, forget what you had"
	default:
		return nil
	}
	return write(w, []byte(at.Format(time.TimeOnly)+"  "+text+"\n"))
}
