// Look up one name with Go's net package, and say as JSON what came of it.
//
// Usage: resolve [-wait] [-count N] [-timeout D] FUNCTION HOST
// FUNCTION: LookupHost, LookupIP, LookupIPAddr, LookupAddr or Dial (to port 9; the lookup is what
// counts). -wait: print "ready", then wait for a line on stdin.
// Prints: {"function","host","kind","error","latency_ns","pid"}; kind is the EAI_ name that
// DNSError's flags amount to, or OK.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"time"
)

type report struct {
	Function string `json:"function"`
	Host     string `json:"host"`
	Kind     string `json:"kind"`
	Error    string `json:"error"`
	Latency  int64  `json:"latency_ns"`
	Pid      int    `json:"pid"`
}

func kind(err error) string {
	var dns *net.DNSError
	switch {
	case err == nil:
		return "OK"
	case !errors.As(err, &dns):
		return "OTHER"
	case dns.IsNotFound:
		return "EAI_NONAME"
	case dns.IsTimeout || dns.IsTemporary:
		return "EAI_AGAIN"
	}
	return "EAI_FAIL"
}

func lookUp(ctx context.Context, function, host string) (err error) {
	resolver := net.DefaultResolver
	switch function {
	case "LookupHost":
		_, err = resolver.LookupHost(ctx, host)
	case "LookupIP":
		_, err = resolver.LookupIP(ctx, "ip", host)
	case "LookupIPAddr":
		_, err = resolver.LookupIPAddr(ctx, host)
	case "LookupAddr":
		_, err = resolver.LookupAddr(ctx, host)
	case "Dial":
		var connection net.Conn
		connection, err = (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, "9"))
		if err == nil {
			connection.Close()
		}
	default:
		fmt.Fprintln(os.Stderr, "unknown function", function)
		os.Exit(2)
	}
	return err
}

func once(function, host string, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	start := time.Now()
	err := lookUp(ctx, function, host)
	result := report{Function: function, Host: host, Kind: kind(err), Pid: os.Getpid()}
	result.Latency = time.Since(start).Nanoseconds()
	if err != nil {
		result.Error = err.Error()
	}
	json.NewEncoder(os.Stdout).Encode(result)
}

func main() {
	wait := flag.Bool("wait", false, "wait for a line on stdin first")
	count := flag.Int("count", 1, "how many lookups")
	timeout := flag.Duration("timeout", 30*time.Second, "limit for one lookup")
	flag.Parse()
	if flag.NArg() != 2 {
		fmt.Fprintln(os.Stderr, "usage: resolve [-wait] [-count N] [-timeout D] FUNCTION HOST")
		os.Exit(2)
	}
	if *wait {
		fmt.Println("ready")
		bufio.NewReader(os.Stdin).ReadString('\n')
	}
	for number := 0; number < *count; number++ {
		once(flag.Arg(0), flag.Arg(1), *timeout)
	}
}
