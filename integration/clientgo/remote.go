package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// result is what client-go says about the end of a session.
type result struct {
	// Code is the exit code that the server sent; absent if it sent none.
	Code *int `json:"code,omitempty"`
	// Error is client-go's error, empty after success.
	Error string `json:"error"`
	// Bytes is how many bytes were dropped, and Seconds how long that took; both with --discard only.
	Bytes   int64   `json:"bytes,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
}

// sink drops and counts what it is given.
type sink struct{ bytes int64 }

func (s *sink) Write(bytes []byte) (int, error) {
	s.bytes += int64(len(bytes))
	return len(bytes), nil
}

// remote is an exec or attach. It ends with code 0 however the session ended, and writes how into a file.
func remote(arguments []string) {
	flags := flag.NewFlagSet("remote", flag.ExitOnError)
	var (
		address   = flags.String("url", "", "the URL that CRI gave")
		transport = flags.String("transport", "", "spdy, websocket or fallback")
		protocol  = flags.String("protocol", "", "the only protocol to offer; client-go's choice if empty")
		stdin     = flags.Bool("stdin", false, "stream standard input")
		stdout    = flags.Bool("stdout", false, "stream standard output")
		stderr    = flags.Bool("stderr", false, "stream standard error")
		tty       = flags.Bool("tty", false, "there is a terminal")
		sizes     = flags.String("sizes", "", "a file with the terminal's sizes, one `width height` a line")
		discard   = flags.Bool("discard", false, "drop standard output, count it and take the time")
		to        = flags.String("result", "", "where the result is written")
	)
	_ = flags.Parse(arguments)
	// kubectl and kubelet ask for streams in the query, which a runtime must ignore: its URL stands for the request.
	options := remotecommand.StreamOptions{Tty: *tty}
	if *stdin {
		options.Stdin = os.Stdin
	}
	dropped := &sink{}
	if *stdout {
		options.Stdout = os.Stdout
		if *discard {
			options.Stdout = dropped
		}
	}
	if *stderr {
		options.Stderr = os.Stderr
	}
	if *sizes != "" {
		file, err := os.OpenFile(*sizes, os.O_RDWR, 0)
		if err != nil {
			fail("%v", err)
		}
		options.TerminalSizeQueue = &queue{bufio.NewScanner(file)}
	}
	executor, err := remoteExecutor(*address, *transport, *protocol)
	if err != nil {
		fail("%v", err)
	}
	began := time.Now()
	err = executor.StreamWithContext(context.Background(), options)
	var ended result
	if *discard {
		ended.Bytes, ended.Seconds = dropped.bytes, time.Since(began).Seconds()
	}
	var code exec.CodeExitError
	switch {
	case err == nil:
		ended.Code = new(int)
	case errors.As(err, &code):
		ended.Code, ended.Error = &code.Code, err.Error()
	default:
		ended.Error = err.Error()
	}
	ended.write(*to)
}

// write puts a result into a file.
func (ended result) write(to string) {
	text, err := json.Marshal(ended)
	if err == nil {
		err = os.WriteFile(to, text, 0o600)
	}
	if err != nil {
		fail("%v", err)
	}
}

func remoteExecutor(address, transport, protocol string) (remotecommand.Executor, error) {
	config := &rest.Config{}
	target, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	switch transport {
	case "spdy":
		if protocol == "" {
			return remotecommand.NewSPDYExecutor(config, "POST", target)
		}
		tripper, upgrader, err := spdy.RoundTripperFor(config)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewSPDYExecutorForProtocols(tripper, upgrader, "POST", target, protocol)
	case "websocket":
		if protocol == "" {
			return remotecommand.NewWebSocketExecutor(config, "GET", address)
		}
		return remotecommand.NewWebSocketExecutorForProtocols(config, "GET", address, protocol)
	case "fallback":
		first, err := remotecommand.NewWebSocketExecutor(config, "GET", strings.Replace(address, "http://"+target.Host, withoutWebSocket(), 1))
		if err != nil {
			return nil, err
		}
		second, err := remotecommand.NewSPDYExecutor(config, "POST", target)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewFallbackExecutor(first, second, httpstream.IsUpgradeFailure)
	}
	return nil, fmt.Errorf("unknown transport %q", transport)
}

// queue gives out terminal sizes as they are written into a file.
type queue struct{ lines *bufio.Scanner }

func (q *queue) Next() *remotecommand.TerminalSize {
	if !q.lines.Scan() {
		return nil
	}
	var size remotecommand.TerminalSize
	if _, err := fmt.Sscan(q.lines.Text(), &size.Width, &size.Height); err != nil {
		fail("size %q: %v", q.lines.Text(), err)
	}
	return &size
}
