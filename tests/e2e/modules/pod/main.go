// SPDX-License-Identifier: Apache-2.0

// pod is the program of all test pods. As `pilot-agent` it stands for the two commands of that name which an injector puts
// into a pod: the proxy, which here is Envoy with a fixed configuration, and the validation init container. Other commands
// are the application and its client.
package main

import (
	"fmt"
	"os"
	"slices"
)

func main() {
	arguments := os.Args[1:]
	if len(arguments) == 0 {
		fail("usage: pod proxy|istio-iptables|serve|get|say|hold|crash ...")
	}
	var err error
	switch command := arguments[0]; {
	case command == "proxy":
		err = proxy()
	case command == "istio-iptables" && slices.Contains(arguments, "--run-validation"):
		err = validate()
	case command == "serve":
		err = serve(arguments[1:])
	case command == "get" && len(arguments) > 1:
		err = get(arguments[1:])
	case command == "say" && len(arguments) == 3:
		err = say(arguments[1], arguments[2])
	case command == "crash" && len(arguments) > 1:
		err = crash(arguments[1:])
	case command == "hold" && len(arguments) == 2:
		err = hold(arguments[1])
	default:
		err = fmt.Errorf("not understood: %q", arguments)
	}
	if err != nil {
		fail(err)
	}
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, "pod:", why)
	os.Exit(1)
}
