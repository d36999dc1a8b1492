// A benchmark client on Go's tsnet, driven by lines on standard input.
//
// It answers each command with one line of JSON, and speaks the far end's protocol: a nine-byte header, a command
// letter and a big-endian length; D asks for that many bytes, U sends them and waits for a 'k', P echoes the header.
// guildnet-bench runs it beside the same commands on the GuildNet connector.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tsnet"
)

// answer is one line of output. Seconds are wall clock; cpu is user plus system time of this process.
type answer struct {
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu"`
	P50us   int64   `json:"p50_us,omitempty"`
	P99us   int64   `json:"p99_us,omitempty"`
	RSSKiB  int64   `json:"rss_kib"`
	Error   string  `json:"error,omitempty"`
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: tsnet LOGIN_SERVER HOSTNAME TARGET   (auth key in TS_AUTHKEY, commands on standard input)")
		os.Exit(2)
	}
	dir, err := os.MkdirTemp("", "bench-tsnet-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer os.RemoveAll(dir)
	c := &client{target: os.Args[3], server: &tsnet.Server{
		Dir: dir, Hostname: os.Args[2], AuthKey: os.Getenv("TS_AUTHKEY"), ControlURL: os.Args[1], Ephemeral: true,
		Logf: func(string, ...any) {}, UserLogf: func(string, ...any) {},
	}}
	defer c.server.Close()

	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		out.Encode(c.timed(strings.Fields(lines.Text())))
	}
}

type client struct {
	server *tsnet.Server
	target string
	flow   net.Conn
}

func (c *client) timed(words []string) answer {
	var a answer
	cpu, begin := cpuSeconds(), time.Now()
	if err := c.run(words, &a); err != nil {
		a.Error = err.Error()
	}
	a.Seconds, a.CPU, a.RSSKiB = time.Since(begin).Seconds(), cpuSeconds()-cpu, rssKiB()
	return a
}

func (c *client) run(words []string, a *answer) error {
	if len(words) == 0 {
		return errors.New("empty command")
	}
	n := uint64(0)
	if len(words) > 1 {
		var err error
		if n, err = strconv.ParseUint(words[1], 10, 64); err != nil {
			return err
		}
	}
	switch words[0] {
	case "join":
		return c.join()
	case "down":
		if err := c.send('D', n); err != nil {
			return err
		}
		_, err := io.CopyBuffer(io.Discard, io.LimitReader(c.flow, int64(n)), make([]byte, 1<<16))
		return err
	case "up":
		return c.upload(n)
	case "rtt":
		return sample(n, a, c.echo)
	case "dial":
		return sample(n, a, func() error {
			conn, err := c.dial()
			if err != nil {
				return err
			}
			return conn.Close()
		})
	}
	return fmt.Errorf("unknown command %q", words[0])
}

// join brings the node up and repeats the first dial until it echoes, for at most a minute.
func (c *client) join() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := c.server.Up(ctx); err != nil {
		return err
	}
	local, err := c.server.LocalClient()
	if err != nil {
		return err
	}
	prefs := &ipn.MaskedPrefs{Prefs: ipn.Prefs{RouteAll: true}, RouteAllSet: true}
	if _, err := local.EditPrefs(ctx, prefs); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if c.flow, err = c.dial(); err == nil {
			if err = c.echo(); err == nil {
				return nil
			}
		}
	}
	return fmt.Errorf("no echo within a minute: %w", err)
}

func (c *client) dial() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return c.server.Dial(ctx, "tcp", c.target)
}

func (c *client) send(command byte, n uint64) error {
	header := binary.BigEndian.AppendUint64([]byte{command}, n)
	_, err := c.flow.Write(header)
	return err
}

func (c *client) echo() error {
	if err := c.send('P', 1); err != nil {
		return err
	}
	_, err := io.ReadFull(c.flow, make([]byte, 9))
	return err
}

func (c *client) upload(n uint64) error {
	if err := c.send('U', n); err != nil {
		return err
	}
	chunk := make([]byte, 1<<16)
	for left := n; left > 0; {
		k := min(left, uint64(len(chunk)))
		if _, err := c.flow.Write(chunk[:k]); err != nil {
			return err
		}
		left -= k
	}
	_, err := io.ReadFull(c.flow, chunk[:1])
	return err
}

func sample(n uint64, a *answer, once func() error) error {
	times := make([]int64, 0, n)
	for range n {
		begin := time.Now()
		if err := once(); err != nil {
			return err
		}
		times = append(times, time.Since(begin).Microseconds())
	}
	slices.Sort(times)
	if len(times) > 0 {
		a.P50us, a.P99us = times[len(times)/2], times[len(times)*99/100]
	}
	return nil
}

func cpuSeconds() float64 {
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) != nil {
		return 0
	}
	seconds := func(t syscall.Timeval) float64 { return float64(t.Sec) + float64(t.Usec)/1e6 }
	return seconds(r.Utime) + seconds(r.Stime)
}

func rssKiB() int64 {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}
