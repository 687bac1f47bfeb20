// A gRPC service of ordinary size and its clients, for what long connections go through while the service is rolled.
//
//	grpc serve ADDRESS              until SIGTERM; calls that are on their way end first
//	grpc call ADDRESS CONNECTIONS   calls over standing connections, all the time, until the end of the input
//
// Connections live for some seconds and are then replaced, as servers in production do it (GOAWAY), so that clients find
// other pods. A client says what became of its calls as JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/keepalive"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		serve(os.Args[2])
		return
	}
	if len(os.Args) == 4 && os.Args[1] == "call" {
		connections, err := strconv.Atoi(os.Args[3])
		if err == nil {
			call(os.Args[2], connections)
			return
		}
	}
	log.Fatal("serve ADDRESS, or call ADDRESS CONNECTIONS")
}

// server gives the host's name as the answer, and numbers back as they come.
type server struct {
	testpb.UnimplementedTestServiceServer
	name string
}

func (s *server) UnaryCall(_ context.Context, request *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return &testpb.SimpleResponse{Payload: request.GetPayload(), Hostname: s.name}, nil
}

func (s *server) FullDuplexCall(stream testpb.TestService_FullDuplexCallServer) error {
	for {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{Payload: request.GetPayload()}); err != nil {
			return err
		}
	}
}

func serve(address string) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	// Long calls get as long to end as a pod has.
	life := keepalive.ServerParameters{MaxConnectionAge: 20 * time.Second, MaxConnectionAgeGrace: time.Minute}
	srv := grpc.NewServer(grpc.KeepaliveParams(life))
	testpb.RegisterTestServiceServer(srv, &server{name: name})
	healthpb.RegisterHealthServer(srv, health.NewServer())
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	go func() {
		<-end
		srv.GracefulStop()
	}()
	if err := srv.Serve(listener); err != nil {
		log.Fatal(err)
	}
}

// report is what became of a client's calls.
type report struct {
	Calls    int            `json:"calls"`
	Streamed int            `json:"streamed"`
	Servers  map[string]int `json:"servers"`
	Failures map[string]int `json:"failures"`

	lock sync.Mutex
}

func (r *report) note(entry func()) {
	r.lock.Lock()
	defer r.lock.Unlock()
	entry()
}

func (r *report) fail(what string, err error) {
	r.note(func() { r.Failures[fmt.Sprintf("%s: %v", what, err)]++ })
}

func call(address string, connections int) {
	stop, cancel := context.WithCancel(context.Background())
	result := &report{Servers: map[string]int{}, Failures: map[string]int{}}
	var group sync.WaitGroup
	for range connections {
		connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			log.Fatal(err)
		}
		client := testpb.NewTestServiceClient(connection)
		group.Go(func() { unary(stop, client, result) })
		group.Go(func() { streams(stop, client, result) })
	}
	fmt.Println("ready")
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		log.Fatal(err)
	}
	cancel()
	group.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}

// patience is how long one answer may take.
const patience = 30 * time.Second

// unary makes one call after the other.
func unary(stop context.Context, client testpb.TestServiceClient, result *report) {
	for stop.Err() == nil {
		limit, cancel := context.WithTimeout(context.Background(), patience)
		answer, err := client.UnaryCall(limit, &testpb.SimpleRequest{FillServerId: true})
		cancel()
		if err != nil {
			result.fail("call", err)
		} else {
			result.note(func() { result.Calls++; result.Servers[answer.GetHostname()]++ })
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// streams sends numbers one after the other over a stream of some seconds, and wants each back; then the next stream.
func streams(stop context.Context, client testpb.TestServiceClient, result *report) {
	for stop.Err() == nil {
		if err := stream(stop, client, result); err != nil {
			result.fail("stream", err)
		}
	}
}

func stream(stop context.Context, client testpb.TestServiceClient, result *report) error {
	limit, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := client.FullDuplexCall(limit)
	if err != nil {
		return err
	}
	for number := 0; number < 50 && stop.Err() == nil; number++ {
		text := strconv.Itoa(number)
		err := stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte(text)}})
		if err != nil && err != io.EOF {
			return err
		}
		// Why a stream broke is what the receiver is told.
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		if got := string(answer.GetPayload().GetBody()); got != text {
			return fmt.Errorf("%s came back as %s", text, got)
		}
		result.note(func() { result.Streamed++ })
		time.Sleep(100 * time.Millisecond)
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if _, err := stream.Recv(); err != io.EOF {
		return fmt.Errorf("after the last one: %v", err)
	}
	return nil
}
