module guildnet.invalid/peers/workload

go 1.26
