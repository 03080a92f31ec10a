// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	envoy    = "/usr/local/bin/envoy"
	template = "/etc/istio/envoy.yaml"
	// The only directory an injected proxy can write to.
	state = "/etc/istio/proxy"
	admin = "http://127.0.0.1:15000"
)

// proxy runs Envoy, and answers probes for it as pilot-agent does.
func proxy() error {
	text, err := os.ReadFile(template)
	if err != nil {
		return err
	}
	config := filepath.Join(state, "envoy.yaml")
	text = []byte(strings.ReplaceAll(string(text), "$POD", os.Getenv("POD_NAME")))
	if err := os.WriteFile(config, text, 0o600); err != nil {
		return err
	}
	command := exec.Command(envoy, "-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning",
		"--file-flush-interval-msec", "20")
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	if err := command.Start(); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() { _ = command.Process.Signal(<-signals) }()
	http.HandleFunc("/healthz/ready", ready)
	go func() { fail(http.ListenAndServe(":15021", nil)) }()
	return command.Wait()
}

func ready(answer http.ResponseWriter, _ *http.Request) {
	client := http.Client{Timeout: time.Second}
	response, err := client.Get(admin + "/ready")
	if err != nil {
		http.Error(answer, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_ = response.Body.Close()
	answer.WriteHeader(response.StatusCode)
}
