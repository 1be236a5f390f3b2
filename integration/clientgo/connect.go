package main

import (
	"flag"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
)

// connect is one connection of a port-forward, from standard input and to standard output. Each direction ends by itself, which
// the listener of forward does not allow: it ends both when the port has ended its own.
func connect(arguments []string) {
	flags := flag.NewFlagSet("connect", flag.ExitOnError)
	var (
		discard = flags.Bool("discard", false, "drop what comes, count it and take the time; send what --first and --send say")
		first   = flags.String("first", "", "with --discard: what is sent first")
		send    = flags.Int64("send", 0, "with --discard: how many zeros are sent then")
		to      = flags.String("result", "", "with --discard: where the result is written")
	)
	dialer, port := portForward(flags, arguments)
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
	var in io.Reader = os.Stdin
	var out io.Writer = os.Stdout
	dropped, began := &sink{}, time.Now()
	if *discard {
		in, out = io.MultiReader(strings.NewReader(*first), io.LimitReader(zeros{}, *send)), dropped
	}
	sent, received, ended := make(chan error, 1), make(chan error, 1), make(chan struct{})
	go func() {
		_, err := io.Copy(out, data)
		_ = os.Stdout.Close()
		close(ended)
		received <- err
	}()
	go func() {
		_, err := io.Copy(data, in)
		if *discard {
			// containerd does not wait for the rest of what the port sends.
			<-ended
		}
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
	if *discard {
		result{Bytes: dropped.bytes, Seconds: time.Since(began).Seconds()}.write(*to)
	}
}

// zeros is an endless source.
type zeros struct{}

func (zeros) Read(bytes []byte) (int, error) { return len(bytes), nil }
