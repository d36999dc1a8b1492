module guildnet.invalid/peers/headscale-0.27.1

go 1.25

require github.com/juanfont/headscale v0.27.1
