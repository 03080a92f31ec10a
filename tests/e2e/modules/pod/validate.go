// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"
)

const (
	probePort       = 15002
	ipv6            = 41 // IPPROTO_IPV6
	originalDst     = 80 // SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST
	validationLimit = 5 * time.Second
	// What the replaced component looks for in the pod's status.
	notRedirected = 126
)

// validate is what the init container istio-validation does: it connects to a port that nobody listens at, and is satisfied
// when its own listener gets the connection.
func validate() error {
	ours, loopback := "127.0.0.1", "127.0.0.6"
	if ip := net.ParseIP(os.Getenv("INSTANCE_IP")); ip != nil && ip.To4() == nil {
		ours, loopback = "::1", "::6"
	}
	redirected := make(chan error, 2)
	for _, port := range []string{"15001", "15006"} {
		listener, err := net.Listen("tcp", net.JoinHostPort(ours, port))
		if err != nil {
			return err
		}
		go accept(listener, redirected)
	}
	ctx, cancel := context.WithTimeout(context.Background(), validationLimit)
	defer cancel()
	for {
		dialer := net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(ours)}}
		connection, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(loopback, fmt.Sprint(probePort)))
		if err == nil {
			defer connection.Close()
		}
		select {
		case err := <-redirected:
			if err == nil {
				fmt.Println("validation: redirected")
			}
			return err
		case <-time.After(time.Second):
		case <-ctx.Done():
			fmt.Fprintln(os.Stderr, "validation: not redirected:", err)
			os.Exit(notRedirected)
		}
	}
}

func accept(listener net.Listener, redirected chan<- error) {
	connection, err := listener.Accept()
	if err != nil {
		redirected <- err
		return
	}
	raw, err := connection.(*net.TCPConn).SyscallConn()
	if err != nil {
		redirected <- err
		return
	}
	_ = raw.Control(func(descriptor uintptr) {
		port, err := originalPort(descriptor, connection.LocalAddr().(*net.TCPAddr).IP.To4() == nil)
		if err == nil && port != probePort {
			err = fmt.Errorf("the original port is %d, not %d", port, probePort)
		}
		redirected <- err
	})
}

// originalPort reads the port of a sockaddr_in or sockaddr_in6: the same place in both.
func originalPort(descriptor uintptr, six bool) (uint16, error) {
	level := uintptr(syscall.IPPROTO_IP)
	if six {
		level = ipv6
	}
	var address [28]byte
	length := uint32(len(address))
	_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, descriptor, level, originalDst,
		uintptr(unsafe.Pointer(&address[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("original destination: %w", errno)
	}
	return binary.BigEndian.Uint16(address[2:4]), nil
}
