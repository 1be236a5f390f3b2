package main

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// forward listens on a free port of 127.0.0.1, which it prints, and forwards its connections until standard input ends.
func forward(arguments []string) {
	dialer, port := portForward(flag.NewFlagSet("forward", flag.ExitOnError), arguments)
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewForStreaming(dialer, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		fail("%v", err)
	}
	go func() {
		<-ready
		ports, err := forwarder.GetPorts()
		if err != nil {
			fail("%v", err)
		}
		fmt.Println(ports[0].Local)
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	if err := forwarder.ForwardPorts(); err != nil {
		fail("%v", err)
	}
}

// portForward reads the arguments of a command that forwards one port, and makes the dialer that they describe. The command may have
// added flags of its own.
func portForward(flags *flag.FlagSet, arguments []string) (httpstream.Dialer, int) {
	var (
		address   = flags.String("url", "", "the URL that CRI gave")
		transport = flags.String("transport", "", "spdy, websocket or fallback")
		port      = flags.Int("port", 0, "the port in the pod")
	)
	_ = flags.Parse(arguments)
	target, err := url.Parse(*address)
	if err != nil {
		fail("%v", err)
	}
	dialer, err := forwardDialer(target, *transport)
	if err != nil {
		fail("%v", err)
	}
	return dialer, *port
}

func forwardDialer(target *url.URL, transport string) (httpstream.Dialer, error) {
	config := &rest.Config{}
	tripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	plain := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: tripper}, "POST", target)
	switch transport {
	case "spdy":
		return plain, nil
	case "websocket":
		return portforward.NewSPDYOverWebsocketDialerForStreaming(target, config)
	case "fallback":
		through, err := url.Parse(withoutWebSocket() + target.Path)
		if err != nil {
			return nil, err
		}
		first, err := portforward.NewSPDYOverWebsocketDialerForStreaming(through, config)
		if err != nil {
			return nil, err
		}
		return portforward.NewFallbackDialerForStreaming(first, plain, httpstream.IsUpgradeFailure), nil
	}
	return nil, fmt.Errorf("unknown transport %q", transport)
}
