-- Run by scripts/clients in Neovim: its language client opens a file with `mlx-gardener lsp` and asks for an inline completion.

local function ended(found)
  vim.fn.writefile({ vim.json.encode(found) }, vim.env.RESULT)
  vim.cmd("qall!")
end

local done, problem = pcall(function()
  vim.cmd.edit(vim.env.FILE)
  local command = { vim.env.PYTHON, "-m", "mlx_gardener", "lsp", "--address", vim.env.ADDRESS }
  local id = assert(vim.lsp.start({ name = "mlx_gardener", cmd = command, root_dir = vim.fs.dirname(vim.env.FILE) }))
  local client = assert(vim.lsp.get_client_by_id(id))
  assert(vim.wait(300000, function() return client.initialized end, 50), "the server did not start")
  assert(client.server_capabilities.inlineCompletionProvider, "the server says that it has no inline completions")
  vim.api.nvim_buf_set_lines(0, 4, 5, false, { "    return first" })
  vim.api.nvim_win_set_cursor(0, { 5, 16 })
  local params = vim.lsp.util.make_position_params(0, client.offset_encoding)
  params.position.character = 16
  params.context = { triggerKind = 2 }
  local answer, failure = client:request_sync("textDocument/inlineCompletion", params, 600000, 0)
  assert(answer and not answer.err, failure or vim.inspect(answer))
  local items = answer.result.items or answer.result
  ended({ text = items[1] and items[1].insertText or "" })
end)
if not done then
  ended({ error = tostring(problem) })
end
