// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/http"
	"os"
	"os/exec"
	"time"
)

// crash runs a node agent and kills it soon after it says that it is ready: a release with a defect.
func crash(command []string) error {
	agent := exec.Command(command[0], command[1:]...)
	agent.Stdout, agent.Stderr = os.Stdout, os.Stderr
	if err := agent.Start(); err != nil {
		return err
	}
	client := http.Client{Timeout: time.Second}
	for {
		response, err := client.Get("http://127.0.0.1:8000/readyz")
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				break
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	return errors.Join(agent.Process.Kill(), errors.New("crashed on purpose"))
}
