module guildnet.invalid/peers/headscale-0.28.0

go 1.25.5

require github.com/juanfont/headscale v0.28.0

// The version that Headscale names is not in the checksum database.
replace github.com/tailscale/tailsql => github.com/tailscale/tailsql v0.0.0-20250421235516-02f85f087b97
