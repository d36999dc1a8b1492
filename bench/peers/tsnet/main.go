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
	"runtime/debug"
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
	Fastest float64 `json:"fastest,omitempty"`
	Slowest float64 `json:"slowest,omitempty"`
	Bytes   uint64  `json:"bytes,omitempty"`
	Port    int     `json:"port,omitempty"`
	RSSKiB  int64   `json:"rss_kib"`
	Error   string  `json:"error,omitempty"`
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: tsnet LOGIN_SERVER HOSTNAME TARGET   (auth key in TS_AUTHKEY, commands on standard input)")
		os.Exit(2)
	}
	c := &client{target: os.Args[3]}
	if err := c.grow(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer c.close()

	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		out.Encode(c.timed(strings.Fields(lines.Text())))
	}
}

// client is a node, and more of them with the same key and numbered names.
type client struct {
	servers []*tsnet.Server
	target  string
	flow    net.Conn
}

// grow makes one more node; it does not join yet.
func (c *client) grow() error {
	dir, err := os.MkdirTemp("", "bench-tsnet-")
	if err != nil {
		return err
	}
	name := os.Args[2]
	if number := len(c.servers); number > 0 {
		name = fmt.Sprintf("%s-%d", name, number)
	}
	c.servers = append(c.servers, &tsnet.Server{
		Dir: dir, Hostname: name, AuthKey: os.Getenv("TS_AUTHKEY"), ControlURL: os.Args[1], Ephemeral: true,
		Logf: func(string, ...any) {}, UserLogf: func(string, ...any) {},
	})
	return nil
}

func (c *client) close() {
	for _, server := range c.servers {
		server.Close()
		os.RemoveAll(server.Dir)
	}
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
	switch {
	case words[0] == "flow" && len(words) == 3:
		seconds, err := strconv.Atoi(words[2])
		if err != nil {
			return err
		}
		return c.flowFor(words[1] == "down", time.Duration(seconds)*time.Second, a)
	case words[0] == "forward" && len(words) == 2:
		return c.forward(words[1], a)
	}
	n := uint64(0)
	if len(words) > 1 {
		var err error
		if n, err = strconv.ParseUint(words[1], 10, 64); err != nil {
			return err
		}
	}
	if words[0] == "many" && len(words) == 4 {
		bytes, err := strconv.ParseUint(words[3], 10, 64)
		if err != nil {
			return err
		}
		return c.many(int(n), words[2] == "down", bytes, a)
	}
	switch words[0] {
	case "join":
		return c.join()
	case "direct":
		return c.direct()
	case "peers":
		return c.peers(int(n))
	case "crowd":
		return c.crowd(int(n))
	case "rest":
		// What the runtime would give back some minutes later counts as given back.
		debug.FreeOSMemory()
		time.Sleep(time.Duration(n) * time.Second)
		return nil
	case "down":
		return download(c.flow, n)
	case "up":
		return upload(c.flow, n)
	case "rtt":
		return sample(n, a, func() error { return echo(c.flow) })
	case "beside":
		return c.beside(n, a)
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

func (c *client) join() (err error) {
	c.flow, err = firstFlow(c.servers[0], c.target)
	return err
}

// firstFlow brings a node up and repeats the first dial until it echoes, for at most a minute.
func firstFlow(server *tsnet.Server, target string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := server.Up(ctx); err != nil {
		return nil, err
	}
	local, err := server.LocalClient()
	if err != nil {
		return nil, err
	}
	prefs := &ipn.MaskedPrefs{Prefs: ipn.Prefs{RouteAll: true}, RouteAllSet: true}
	if _, err := local.EditPrefs(ctx, prefs); err != nil {
		return nil, err
	}
	for ctx.Err() == nil {
		var flow net.Conn
		if flow, err = dial(server, target); err == nil {
			if err = echo(flow); err == nil {
				return flow, nil
			}
			flow.Close()
		}
	}
	return nil, fmt.Errorf("no echo within a minute: %w", err)
}

// crowd joins until so many nodes are up, all at once.
func (c *client) crowd(count int) error {
	joined := make(chan error, count)
	begun := 0
	for len(c.servers) < count {
		if err := c.grow(); err != nil {
			return err
		}
		server := c.servers[len(c.servers)-1]
		begun++
		go func() {
			flow, err := firstFlow(server, c.target)
			if err == nil {
				flow.Close()
			}
			joined <- err
		}()
	}
	var failed error
	for range begun {
		if err := <-joined; err != nil {
			failed = err
		}
	}
	return failed
}

// direct keeps the router in touch until a direct path to it is taken, for at most a minute.
func (c *client) direct() error {
	local, err := c.servers[0].LocalClient()
	if err != nil {
		return err
	}
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(20 * time.Millisecond) {
		if err := echo(c.flow); err != nil {
			return err
		}
		status, err := local.Status(context.Background())
		if err != nil {
			return err
		}
		for _, peer := range status.Peer {
			if peer.CurAddr != "" && peer.PrimaryRoutes != nil {
				return nil
			}
		}
	}
	return errors.New("no direct path to the router")
}

// peers waits until the network map has so many peers, for at most a minute.
func (c *client) peers(count int) error {
	local, err := c.servers[0].LocalClient()
	if err != nil {
		return err
	}
	seen := 0
	for begin := time.Now(); time.Since(begin) < time.Minute; time.Sleep(20 * time.Millisecond) {
		status, err := local.Status(context.Background())
		if err != nil {
			return err
		}
		if seen = len(status.Peer); seen >= count {
			return nil
		}
	}
	return fmt.Errorf("the map has only %d peers", seen)
}

// flowFor is one transfer on a flow of its own for so long. Up, pieces are sent one after another without a wait, and
// those count that the far end says it took.
func (c *client) flowFor(down bool, lasts time.Duration, a *answer) error {
	flow, err := c.dial()
	if err != nil {
		return err
	}
	defer flow.Close()
	flow.SetDeadline(time.Now().Add(lasts))
	buffer := make([]byte, 1<<16)
	count := func(each uint64) error {
		for {
			n, err := flow.Read(buffer)
			a.Bytes += uint64(n) * each
			if err != nil {
				return err
			}
		}
	}
	if down {
		if err = send(flow, 'D', 1<<40); err == nil {
			err = count(1)
		}
	} else {
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			piece := append(binary.BigEndian.AppendUint64([]byte{'U'}, 1<<16), make([]byte, 1<<16)...)
			for {
				if _, err := flow.Write(piece); err != nil {
					return
				}
			}
		}()
		err = count(1 << 16)
		<-sent
	}
	// It has no other end than the time's.
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	return err
}

// forward opens a local port that leads to another address inside the cluster, for as long as this process runs.
func (c *client) forward(to string, a *answer) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	a.Port = listener.Addr().(*net.TCPAddr).Port
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer near.Close()
				far, err := dial(c.servers[0], to)
				if err != nil {
					return
				}
				defer far.Close()
				go func() {
					defer near.Close()
					io.Copy(near, far)
				}()
				io.Copy(far, near)
			}()
		}
	}()
	return nil
}

func (c *client) dial() (net.Conn, error) {
	return dial(c.servers[0], c.target)
}

func dial(server *tsnet.Server, target string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return server.Dial(ctx, "tcp", target)
}

// many runs as many transfers at once, each on a flow of its own.
func (c *client) many(count int, down bool, bytes uint64, a *answer) error {
	flows := make([]net.Conn, 0, count)
	for range count {
		flow, err := c.dial()
		if err != nil {
			return err
		}
		defer flow.Close()
		flows = append(flows, flow)
	}
	type ended struct {
		seconds float64
		err     error
	}
	done := make(chan ended, count)
	for _, flow := range flows {
		go func() {
			begin, err := time.Now(), error(nil)
			if down {
				err = download(flow, bytes)
			} else {
				err = upload(flow, bytes)
			}
			done <- ended{time.Since(begin).Seconds(), err}
		}()
	}
	var failed error
	for range count {
		one := <-done
		if one.err != nil {
			failed = one.err
		}
		if a.Fastest == 0 || one.seconds < a.Fastest {
			a.Fastest = one.seconds
		}
		a.Slowest = max(a.Slowest, one.seconds)
	}
	return failed
}

// beside measures round trips beside a download that goes on for as long as they take.
func (c *client) beside(n uint64, a *answer) error {
	bulk, err := c.dial()
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- download(bulk, 1<<40) }()
	err = sample(n, a, func() error { return echo(c.flow) })
	select {
	case why := <-ended:
		return fmt.Errorf("the download beside ended early: %v", why)
	default:
		bulk.Close()
		<-ended
	}
	return err
}

func send(flow net.Conn, command byte, n uint64) error {
	_, err := flow.Write(binary.BigEndian.AppendUint64([]byte{command}, n))
	return err
}

func echo(flow net.Conn) error {
	if err := send(flow, 'P', 1); err != nil {
		return err
	}
	_, err := io.ReadFull(flow, make([]byte, 9))
	return err
}

func download(flow net.Conn, n uint64) error {
	if err := send(flow, 'D', n); err != nil {
		return err
	}
	got, err := io.CopyBuffer(io.Discard, io.LimitReader(flow, int64(n)), make([]byte, 1<<16))
	if err == nil && uint64(got) < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func upload(flow net.Conn, n uint64) error {
	if err := send(flow, 'U', n); err != nil {
		return err
	}
	chunk := make([]byte, 1<<16)
	for left := n; left > 0; {
		k := min(left, uint64(len(chunk)))
		if _, err := flow.Write(chunk[:k]); err != nil {
			return err
		}
		left -= k
	}
	_, err := io.ReadFull(flow, chunk[:1])
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
