module guildnet.invalid/peers/headscale-0.26.1

go 1.24.0

require github.com/juanfont/headscale v0.26.1
