// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// serve answers HTTP at each ADDRESS:PORT with who it is and which address it was called from. The address may be empty for
// both families, or one of "0.0.0.0" and "[::]" with a port for one of them. At echo=ADDRESS:PORT a line comes back with a
// greeting and the address that it came from.
func serve(addresses []string) error {
	if len(addresses) == 0 {
		return fmt.Errorf("usage: pod serve ADDRESS:PORT...")
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	name := os.Getenv("POD_NAME")
	if name == "" {
		name, _ = os.Hostname()
	}
	http.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) {
		peer, _, _ := net.SplitHostPort(request.RemoteAddr)
		_ = json.NewEncoder(answer).Encode(map[string]string{"pod": name, "peer": peer})
	})
	// For connections that stay open: a line comes back as it was.
	http.HandleFunc("/echo", echo)
	for _, address := range addresses {
		address, isEcho := strings.CutPrefix(address, "echo=")
		network := "tcp"
		if host, _, _ := net.SplitHostPort(address); host == "0.0.0.0" {
			network = "tcp4"
		} else if host == "::" {
			network = "tcp6"
		}
		listener, err := net.Listen(network, address)
		if err != nil {
			return err
		}
		if isEcho {
			go func() { fail(greet(listener)) }()
		} else {
			go func() { fail(http.Serve(listener, nil)) }()
		}
	}
	<-signals
	return nil
}

func greet(listener net.Listener) error {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer connection.Close()
			peer, _, _ := net.SplitHostPort(connection.RemoteAddr().String())
			lines := bufio.NewScanner(connection)
			for lines.Scan() {
				fmt.Fprintln(connection, "hello", lines.Text(), "from", peer)
			}
		}()
	}
}

// say sends a line to ADDRESS:PORT and prints the one that comes back.
func say(address, line string) error {
	connection, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintln(connection, line)
	answer, err := bufio.NewReader(connection).ReadString('\n')
	fmt.Print(answer)
	return err
}

func echo(answer http.ResponseWriter, request *http.Request) {
	control := http.NewResponseController(answer)
	_ = control.EnableFullDuplex()
	answer.WriteHeader(http.StatusOK)
	_ = control.Flush()
	lines := bufio.NewScanner(request.Body)
	for lines.Scan() {
		fmt.Fprintln(answer, lines.Text())
		_ = control.Flush()
	}
}

// get prints a JSON document for each URL: status, the hops that proxies stamped, and the body.
func get(urls []string) error {
	client := http.Client{Timeout: 5 * time.Second}
	for _, url := range urls {
		result := map[string]any{"url": url}
		response, err := client.Get(url)
		if err != nil {
			result["error"] = err.Error()
		} else {
			body, _ := io.ReadAll(response.Body)
			_ = response.Body.Close()
			result["status"], result["hops"], result["body"] = response.StatusCode, response.Header["X-Hop"], string(body)
		}
		if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
			return err
		}
	}
	return nil
}

// hold keeps one connection open and says every 100 ms that it still works; it ends with an error once it does not.
func hold(url string) error {
	read, write := io.Pipe()
	go func() {
		for number := 0; ; number++ {
			fmt.Fprintln(write, number)
			time.Sleep(100 * time.Millisecond)
		}
	}()
	response, err := http.Post(url, "text/plain", read)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		fmt.Println(lines.Text())
	}
	return fmt.Errorf("the connection ended: %v", lines.Err())
}
