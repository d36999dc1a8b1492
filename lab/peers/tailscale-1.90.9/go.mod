module guildnet.invalid/peers/tailscale-1.90.9

go 1.25.3

require tailscale.com v1.90.9
