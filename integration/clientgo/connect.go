package main

import (
	"io"
	"net/http"
	"os"
	"strconv"

	v1 "k8s.io/api/core/v1"
)

// connect is one connection of a port-forward, from standard input and to standard output. Each direction ends by itself, which
// the listener of forward does not allow: it ends both when the port has ended its own.
func connect(arguments []string) {
	dialer, port := portForward("connect", arguments)
	connection, _, err := dialer.Dial("portforward.k8s.io")
	if err != nil {
		fail("%v", err)
	}
	headers := http.Header{}
	headers.Set(v1.PortHeader, strconv.Itoa(port))
	headers.Set(v1.PortForwardRequestIDHeader, "0")
	headers.Set(v1.StreamType, v1.StreamTypeError)
	failure, err := connection.CreateStream(headers)
	if err != nil {
		fail("%v", err)
	}
	_ = failure.Close()
	headers.Set(v1.StreamType, v1.StreamTypeData)
	data, err := connection.CreateStream(headers)
	if err != nil {
		fail("%v", err)
	}
	sent, received := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(os.Stdout, data)
		_ = os.Stdout.Close()
		received <- err
	}()
	go func() {
		_, err := io.Copy(data, os.Stdin)
		if err == nil {
			err = data.Close()
		}
		sent <- err
	}()
	// A refused port resets the data stream: the reason is here.
	text, err := io.ReadAll(failure)
	if len(text) > 0 {
		fail("%s", text)
	}
	for _, err := range []error{err, <-received, <-sent} {
		if err != nil {
			fail("%v", err)
		}
	}
	_ = connection.Close()
}
