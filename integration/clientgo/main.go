// Command clientgo connects its standard streams to a streaming URL by client-go's remotecommand and portforward, the code that
// kubectl and crictl stream with.
//
//	clientgo remote  --url URL --transport T [--protocol P] [--stdin] [--stdout] [--stderr] [--tty] [--sizes FIFO] [--discard] --result FILE
//	clientgo forward --url URL --transport T --port N
//	clientgo connect --url URL --transport T --port N [--discard [--first TEXT] [--send BYTES] --result FILE]
//
// T is spdy, websocket, or fallback: WebSocket first, by way of a proxy that knows no WebSocket, and so SPDY.
package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fail("missing command: remote, forward or connect")
	}
	switch command, arguments := os.Args[1], os.Args[2:]; command {
	case "remote":
		remote(arguments)
	case "forward":
		forward(arguments)
	case "connect":
		connect(arguments)
	default:
		fail("unknown command %q", command)
	}
}

// fail ends the program with code 2: the session could not be started, or its result not be read.
func fail(format string, values ...any) {
	fmt.Fprintf(os.Stderr, "clientgo: "+format+"\n", values...)
	os.Exit(2)
}

// withoutWebSocket is the address of a proxy that answers every upgrade with 400, as those do that drop the header. A streaming URL
// may be used once, so the request must not reach the server.
func withoutWebSocket() string {
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(os.Stderr, "WebSocket was refused")
		http.Error(w, "the upgrade header is missing", http.StatusBadRequest)
	})).URL
}
