module guildnet.invalid/peers/coredns

go 1.26

require github.com/coredns/coredns v1.14.7
