// Command clients is what the lab's tests run of client libraries that are no command of their own.
//
//	clients informer KUBECONFIG CONTEXT NAMESPACE
//
// informer watches the ConfigMaps of a namespace with client-go's shared informer, as controllers do, and prints a line of
// JSON for each event: {"event":"synced"} once the first list is in, then add, update and delete with the object's name,
// its resource version and the value of its key "n". It goes on through disconnects until it is told to end (SIGTERM).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

func main() {
	if len(os.Args) != 5 || os.Args[1] != "informer" {
		fmt.Fprintln(os.Stderr, "usage: clients informer KUBECONFIG CONTEXT NAMESPACE")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := informer(ctx, os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// event is one line of output.
type event struct {
	Event   string `json:"event"`
	Name    string `json:"name,omitempty"`
	Version string `json:"version,omitempty"`
	N       string `json:"n,omitempty"`
}

func informer(ctx context.Context, kubeconfig, context, namespace string) error {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig},
		&clientcmd.ConfigOverrides{CurrentContext: context},
	).ClientConfig()
	if err != nil {
		return err
	}
	// One group is enough: the typed clients of all would be most of this program.
	scheme := runtime.NewScheme()
	if err := core.AddToScheme(scheme); err != nil {
		return err
	}
	config.APIPath = "/api"
	config.GroupVersion = &core.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return err
	}
	var one sync.Mutex
	out := json.NewEncoder(os.Stdout)
	say := func(what string, object any) {
		if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		line := event{Event: what}
		if object, ok := object.(*core.ConfigMap); ok {
			line.Name, line.Version, line.N = object.Name, object.ResourceVersion, object.Data["n"]
		}
		one.Lock()
		defer one.Unlock()
		// Nobody reads any more: there is nothing left to do.
		if out.Encode(line) != nil {
			os.Exit(1)
		}
	}
	source := cache.NewListWatchFromClient(client, "configmaps", namespace, fields.Everything())
	watched := cache.NewSharedIndexInformer(source, &core.ConfigMap{}, 0, cache.Indexers{})
	registered, err := watched.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { say("add", object) },
		UpdateFunc: func(_, object any) { say("update", object) },
		DeleteFunc: func(object any) { say("delete", object) },
	})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		watched.Run(ctx.Done())
	}()
	if cache.WaitForCacheSync(ctx.Done(), registered.HasSynced) {
		say("synced", nil)
	}
	<-ended
	return nil
}
